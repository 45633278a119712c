"""The arguments of a command: what is wrong with them is one line that says what to type."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from checkpointing import given
from checkpointing.errors import CheckpointError
from checkpointing.terminal import say_error


class Parser(argparse.ArgumentParser):
    """A parser that ends with exit code 2 and one line where argparse prints its usage as well."""

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The arguments; those that no option takes are refused with the nearest option of the command."""
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            command: Parser = getattr(options, "parser", self)
            word = unknown[0].partition("=")[0]
            if word.startswith("-"):
                near = _nearest(word, command._option_string_actions)
                command.error(f"{word} is not an option{near}")
            command.error(f"{word} is one too many")
        return options

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and where the help is."""
        if wrong := re.match(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", message):
            near = _nearest(wrong[2], re.findall(r"[\w-]+", wrong[3]))
            kind = "command" if wrong[1] == "COMMAND" else f"choice of {wrong[1]}"
            message = f"{wrong[2]} is not a {kind}{near}"
        elif missing := re.match("the following arguments are required: (.*)", message):
            message = f"{missing[1]} is missing"
        if not message.endswith("?"):
            message = f"{message.rstrip('.')}; {self.prog} --help shows what there is."
        say_error(message)
        sys.exit(2)


def a_path(text: str) -> Path:
    """The type of an argument that is a path; `~` is the home directory, also behind a `=`."""
    try:
        return given.path(text)
    except CheckpointError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), 1, 0.5)
    return f": did you mean {close[0]}?" if close else ""
