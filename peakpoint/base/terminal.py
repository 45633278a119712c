"""Output for people: escaped, uncut, and never a reason for a run to end.

Everything printed goes through here. Names, reasons and overrides may come from a stranger's run, so no
control character reaches a terminal; a pipe, a log or CI gets every table at its full width.
"""

import contextlib
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import rich.console
from rich.cells import cell_len
from rich.segment import Segment, Segments
from rich.style import Style
from rich.text import Text

UNLIMITED = 1_000_000
"""Columns of a stream that is not a terminal."""
WORDS = 24
"""Smallest width of a column of words; below it a table becomes paragraphs."""
_GAP = "   "

# C0, DEL and C1; what reorders or breaks a line (bidirectional marks, line separators); lone surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str, keep: str = "") -> str:
    """Return `text` with its control characters escaped, such as \\x1b, except those in `keep`."""
    return _CONTROL.sub(lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode(), text)


class Console(rich.console.Console):
    """A console that prints text literally: no markup, no emoji, no control characters, nothing cut.

    A terminal keeps its width, or COLUMNS; any other stream has no limit.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False, file: IO[str] | None = None) -> None:
        terminal = _is_terminal(file or (sys.stderr if stderr else sys.stdout))
        super().__init__(
            file=file,
            stderr=stderr,
            quiet=quiet,
            force_terminal=terminal,  # not by FORCE_COLOR, which CI sets for pipes as well
            width=None if terminal else UNLIMITED,
            markup=False,
            emoji=False,
            highlight=False,
        )

    @property
    def file(self) -> Any:
        """Return the stream of the console; writing to it never raises."""
        found = super().file
        return found if isinstance(found, _Steady) else _Steady(found)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    def render_str(self, text: str, **styles: Any) -> Text:
        """Return a string, also that of a table's cell, escaped."""
        return super().render_str(escaped(text), **styles)

    def say(self, text: str) -> None:
        """Print one line unwrapped: a terminal folds it, so that it can be copied whole."""
        self._write([escaped(text)])

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        *,
        title: str = "",
        words: Collection[str] = (),
    ) -> None:
        """Print a table: the first column and those named in `words` to the left, numbers to the right.

        Where the terminal is too narrow, words are folded; where that is not enough, each row becomes a
        paragraph that names its columns.
        """
        cells = [[escaped(str(cell)) for cell in row] for row in rows]
        heads = [escaped(name) for name in columns]
        folds = [name in words for name in columns]
        widths = [max(map(cell_len, column)) for column in zip(heads, *cells, strict=True)]
        room = self.width - len(_GAP) * (len(heads) - 1)
        least = [min(w, WORDS) if fold else w for w, fold in zip(widths, folds, strict=True)]
        if title:
            self.say(title)
        if sum(least) > room:
            self._write([line for row in cells for line in self._paragraph(heads, row)])
            return
        while sum(widths) > room:  # by the widest of those that fold
            widths[max((w, place) for place, w in enumerate(widths) if w > least[place])[1]] -= 1

        def line_of(cells: Sequence[str]) -> str:
            placed = zip(cells, widths, [True, *folds[1:]], strict=True)
            return _GAP.join(_aligned(cell, width, left=left) for cell, width, left in placed).rstrip()

        lines = [line_of(part) for row in cells for part in self._folded(row, widths)]
        self._write([line_of(heads)], Style(bold=True))
        rule = "-" if self.options.ascii_only else "─"
        self._write([rule * (sum(widths) + len(_GAP) * (len(heads) - 1)), *lines])

    def _folded(self, row: Sequence[str], widths: Sequence[int]) -> Iterable[Sequence[str]]:
        """Return the lines of a row: one, unless a cell is wider than its column."""
        if all(cell_len(cell) <= width for cell, width in zip(row, widths, strict=True)):
            return [row]
        folded = [
            [line.plain for line in Text(cell).wrap(self, width)]
            for cell, width in zip(row, widths, strict=True)
        ]
        return itertools.zip_longest(*folded, fillvalue="")

    def _paragraph(self, columns: Sequence[str], row: Sequence[str]) -> list[str]:
        text = ", ".join(f"{name} {cell}".strip() for name, cell in zip(columns, row, strict=True) if cell)
        return textwrap.wrap(
            text, self.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )

    def _write(self, lines: Iterable[str], style: Style | None = None) -> None:
        """Print lines in one call: Rich, which measures each, takes seconds for thousands."""
        text = "\n".join(lines)
        if self.is_terminal:
            written = Segments([Segment(text, style), Segment.line()])
            self.print(written, crop=False, end="")  # above a bar that is being drawn
        elif not self.quiet:
            self.file.write(f"{text}\n")
            self.file.flush()


def _aligned(text: str, width: int, *, left: bool) -> str:
    """Justify as str.ljust and str.rjust do, by the columns of the characters."""
    filling = " " * (width - cell_len(text))
    return text + filling if left else filling + text


def say_error(sentence: str) -> None:
    """Print an error on stderr as one line."""
    Console(stderr=True).say(f"error: {sentence}")


@contextlib.contextmanager
def steady_output() -> Iterator[None]:
    """Keep failures of stdout and stderr from ending the program or changing its exit code.

    A reader that is gone, a closed descriptor, a full disk behind the stream and a character that the
    encoding lacks are ignored for a console, print(), logging, Hydra and the end of the interpreter.
    """
    streams = sys.stdout, sys.stderr
    for descriptor in (1, 2):
        _occupy(descriptor)
    sys.stdout, sys.stderr = map(_steady, streams)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Steady):
                stream.finish()
        sys.stdout, sys.stderr = streams


class _Steady:
    """A stream that drops what cannot be written, and never raises."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`; characters that the encoding lacks are escaped."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except BrokenPipeError:
            self._discard()
        except (OSError, ValueError):  # a full disk; a stream that was closed
            pass
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard()
        except (OSError, ValueError):
            pass

    def finish(self) -> None:
        """Flush for the last time, so that the interpreter's own flush at its end cannot fail."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _discard(self) -> None:
        """Redirect the buffer of the stream and all later output to the null device."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return _is_terminal(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _steady(stream: IO[str] | None) -> Any:
    if stream is None:  # it was closed before the program began
        return _Steady(Path(os.devnull).open("w"))
    return _Steady(stream)


def _occupy(descriptor: int) -> None:
    """Open a closed standard descriptor, or the next file would get its number and its output."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _is_terminal(stream: IO[str] | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # no stream of a file; a closed one
        return False
