"""The one exception that means: the input was wrong, and the message says what to do."""


class UserError(Exception):
    """Something outside the code is wrong: a value, a file, a directory, the data.

    The message is one line that says what was wrong and what to do. `train.py` prints it without a
    traceback and exits with a code other than 0; anything else that escapes is a bug and is shown whole.
    """
