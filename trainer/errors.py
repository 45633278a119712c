"""The one exception that means: the input was wrong, and the message says what to do."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something outside the code is wrong: a value, a file, a directory, the data.

    The message is one line that says what was wrong and what to do. `train.py` prints it without a
    traceback and exits with a code other than 0; anything else that escapes is a bug and is shown whole.
    """


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence: `: did you mean X?` with the known name closest to `word`, or all names."""
    names = sorted(known)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), lower, 1, 0.5)
    return f": did you mean {prefix}{lower[close[0]]}?" if close else f"; there are: {', '.join(names)}."
