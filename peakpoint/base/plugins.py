"""Modules of the user's own, which register networks, data and more: imported at the user's word alone."""

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from peakpoint.base.errors import CheckpointError

KEY = "plugins"
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


def named(arguments: Iterable[str]) -> list[str]:
    """The modules in the last `plugins=[a,b]` of a command line."""
    found: list[str] = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == KEY:
            found = [name.strip("'\" ") for name in value.strip("[] ").split(",") if name.strip("'\" ")]
    return found


def load(modules: Iterable[str]) -> None:
    """Import modules. Raises CheckpointError for one that cannot be imported."""
    for module in modules:
        if not _NAME.fullmatch(module):
            raise CheckpointError(f"{KEY}: {module!r} is not the name of a module, such as my_module.")
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CheckpointError(
                f"{KEY}: {module} cannot be imported: {error}. It must be on the Python path."
            ) from None


def recorded(config: Any) -> list[str]:
    """The modules that a run was trained with, by its recorded configuration: names to print, no more."""
    given = config.get(KEY) if isinstance(config, Mapping) else None
    names = given if isinstance(given, list | tuple) else []
    return [name for name in names if isinstance(name, str) and _NAME.fullmatch(name)]


def hint(config: Any) -> str:
    """What to add so that the code of a run is here, by its recorded configuration, in words."""
    used = recorded(config)
    whose = f"The run used {KEY}=[{','.join(used)}]. " if used else ""
    asked = f"{KEY}=[{','.join(used) or 'module'}]"
    return (
        f"{whose}Code is imported only at your word: add {asked} to the command (in Python: "
        f"load_model(path, {KEY}={used or ['module']}))"
    )
