"""Arguments of the commands; a wrong one is a one-line message with its remedy."""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from peakpoint.base import given
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import say_error
from peakpoint.base.text import closest


class Parser(argparse.ArgumentParser):
    """A parser that ends with exit code 2 and one line where argparse prints its usage as well."""

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Return the arguments; unknown ones are refused with the nearest option of the command."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            word = unknown[0].partition("=")[0]
            if word.startswith("-"):
                self.error(f"{word} is not an option{_hint(word, self._option_string_actions)}")
            self.error(f"{word} is one too many")
        return options

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and where the help is, and exit with code 2."""
        if wrong := re.match(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            hint = _hint(wrong[2], re.findall(r"[\w-]+", wrong[3]))
            message = f"{wrong[2]} is not a choice of {wrong[1]}{hint}"
        elif missing := re.match("the following arguments are required: (.*)", message):
            message = f"{missing[1]} is missing"
        if not message.endswith("?"):
            message = f"{message.rstrip('.')}; {self.prog} --help shows what there is."
        say_error(message)
        sys.exit(2)


def a_path(text: str) -> Path:
    """Return a path argument; `~` is the home directory, also after a `=`."""
    try:
        return given.path(text)
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    """Return the type of an argument that is a number from `least` to `most`, both included."""

    def checked(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {given.WORDS[kind]}") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text[:80]} is out of range: it must be between {least:,} and {most:,}"
            )
        return value

    return checked


class Argument:
    """An argument of a command: its names, and the options that argparse's add_argument takes."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.names, self.options = names, options


def path_argument(name: str, metavar: str, text: str) -> Argument:
    """Return a positional argument that is a path."""
    return Argument(name, type=a_path, metavar=metavar, help=text)


RUN = path_argument("path", "RUN", "a run directory, or its checkpoints folder")
DRY_RUN = Argument("--dry-run", action="store_true", help="only say what would be done")
RULES = Argument("--rules", default="default", metavar="FILE", help="YAML, or a name in conf/release/rules")
EVALUATION = (
    Argument("--data-root", type=a_path, metavar="DIR", help="where the run's data lies now"),
    Argument("--device", default="auto", help="to evaluate on: auto, cpu, cuda"),
)

Command = Callable[[argparse.Namespace], int]
ARGUMENTS: dict[Command, tuple[Argument, ...]] = {}
"""The arguments of each command whose module was imported."""


def takes(*arguments: Argument) -> Callable[[Command], Command]:
    """Return a decorator that declares the arguments of a command, which is called with their values."""

    def declare(command: Command) -> Command:
        ARGUMENTS[command] = arguments
        return command

    return declare


def _hint(word: str, known: Iterable[str]) -> str:
    near = closest(word, known)
    return f": did you mean {near}?" if near else ""
