"""Arguments of the commands; a wrong one is a one-line message with its remedy."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

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


def add_path(parser: argparse.ArgumentParser, name: str, metavar: str, text: str) -> None:
    """Add one positional path."""
    parser.add_argument(name, type=a_path, metavar=metavar, help=text)


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the path of a run, as most commands take it."""
    add_path(parser, "path", "RUN", "a run directory, or its checkpoints folder")


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add `--dry-run` for a command that changes files."""
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Add `--rules`, by which a checkpoint is chosen."""
    parser.add_argument(
        "--rules", default="default", metavar="FILE", help="YAML, or a name in conf/release/rules"
    )


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that evaluate a network."""
    parser.add_argument("--data-root", type=a_path, metavar="DIR", help="where the run's data lies now")
    parser.add_argument("--device", default="auto", help="to evaluate on: auto, cpu, cuda")


def _hint(word: str, known: Iterable[str]) -> str:
    near = closest(word, known)
    return f": did you mean {near}?" if near else ""
