"""Bounds of small files: regular files of limited size, line length, nesting and numbers.

Every file of a run directory, a mirror or a user that is read whole is read here. A pipe would block its
reader for ever, a device has no end, a few bytes of YAML can expand to gigabytes, and Python's parsers
recurse until their stack ends. `text.json_text` makes JSON within the same bounds.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

from peakpoint.base.errors import CheckpointError, Denied, os_reason
from peakpoint.base.text import DEEPEST, SMALL, check_bounds

LONGEST = 16 << 20
"""Largest line in bytes."""
LOG = 1 << 30
"""Largest file of lines in bytes."""
WRITTEN = 256 << 10
"""Largest YAML file in bytes, which takes the parser a second."""

YAML_ERRORS = (yaml.YAMLError, ValueError, ArithmeticError, RecursionError)
"""Exceptions of PyYAML for a text that is not YAML, or not a value."""

RUN_NAMES = (
    *("checkpoints", "training", "milestone", "production", "metadata", "quarantine"),
    *(".hydra", "tensorboard", "run.json", "status.json", "metrics.jsonl"),
    *("confusion.json", "report", "report.html", "wandb", "wandb.json", "mlflow.json"),
)
"""Folders and records of a run or of a checkpoint folder."""
RUN_FOLDERS = ("checkpoints", ".hydra", ".hydra/resume-*")
"""Folders whose entries are folders or records, too."""

_DENIALS = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE)
"""Refusals of the operating system that depend on who reads, and when; not on the file."""

_LONG_NUMBER = re.compile(r"\d{19}")


class Absent(CheckpointError):  # noqa: N818 (the name says what is wrong)
    """The file does not exist."""


def opened(path: Path) -> BufferedReader:
    """Open a regular file for reading.

    Raises Absent when there is none, Denied when this process may not, CheckpointError for another kind.
    """
    try:
        # Opening a device can already have effects: the name is checked first, then the open file.
        _regular(path, path.stat().st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        file = os.fdopen(descriptor, "rb")
    except (OSError, ValueError) as error:
        raise unread(path, error) from None
    try:
        _regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        file.close()
        raise
    return file


def _regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{path} cannot be read: it is not a regular file.")


def refuse_links(directory: Path) -> None:
    """Raise CheckpointError when a folder or a record of a run is a link that leads out of its directory.

    The directory itself may be a link, which its user chose. Pointers beside the checkpoints may name
    anything: no code path reads them back to decide anything.
    """
    places = [directory / name for name in RUN_NAMES]
    places += [entry for folder in RUN_FOLDERS for entry in directory.glob(f"{folder}/*")]
    real = os.path.realpath(directory)
    for place in places:
        if place.is_symlink() and not Path(os.path.realpath(place)).is_relative_to(real):
            raise CheckpointError(
                f"{place} is a link to {os.path.realpath(place)}, outside {directory}, and is not followed: "
                "put the folder or file itself there."
            )


def unread(path: Path, error: OSError | ValueError) -> CheckpointError:
    """Return the error for a file that cannot be read, one line."""
    kind = Absent if isinstance(error, FileNotFoundError) else CheckpointError
    if getattr(error, "errno", None) in _DENIALS:
        kind = Denied
    return kind(f"{path} cannot be read: {os_reason(error)}.")


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """Return the bytes of a file. Raises CheckpointError, also for more than `limit` bytes, or Absent."""
    with opened(path) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            # A file of /proc has no size, and one that grows has another.
            data = file.read(limit + 1) if size <= limit else b""
        except OSError as error:
            raise unread(path, error) from None
    if max(size, len(data)) > limit:
        raise CheckpointError(f"{path} has more than {limit} bytes, too many for what it is: refused.")
    return data


def read_text(path: Path, limit: int = SMALL) -> str:
    """Return the text of a file, as read_bytes; bytes that are not UTF-8 are replaced."""
    return read_bytes(path, limit).decode(errors="replace")


def lines(path: Path, limit: int = LOG) -> Iterator[str]:
    """Yield the lines of a file of up to `limit` bytes, without line ends; other than UTF-8 is replaced.

    Raises CheckpointError, also for a line of more than LONGEST bytes, or Absent.
    """
    with opened(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > limit:
                raise CheckpointError(f"{path} has more than {limit} bytes, too many for a log: refused.")
            while line := file.readline(LONGEST + 1):
                if len(line) > LONGEST:
                    raise CheckpointError(f"{path} has a line of more than {LONGEST} bytes: refused.")
                yield line.rstrip(b"\r\n").decode(errors="replace")
        except OSError as error:
            raise unread(path, error) from None


def json_value(data: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError, also when it is nested too deeply or has a giant number."""
    text = data.decode() if isinstance(data, bytes) else data
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    except MemoryError:
        raise ValueError("it takes too much memory") from None
    if text.count("[") + text.count("{") > DEEPEST or _LONG_NUMBER.search(text):
        check_bounds(found)
    return found


def read_json(path: Path, limit: int = SMALL) -> dict[str, Any]:
    """Return the JSON object in a file. Raises CheckpointError, or Absent when there is no file."""
    try:
        found = json_value(read_bytes(path, limit))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return found


def yaml_value(path: Path, loader: Any = yaml.SafeLoader) -> Any:
    """Return the value of a YAML file, read by a loader of PyYAML. Raises as yaml_text."""
    text = yaml_text(path)
    try:
        found = yaml.load(text, Loader=loader)
        check_bounds(found)
    except YAML_ERRORS as error:
        raise not_yaml(path, error) from None
    return found


def yaml_text(path: Path) -> str:
    """Return the text of a YAML file that is safe to parse.

    Aliases are refused, as a few lines of them can exhaust memory. Raises CheckpointError, or Absent when
    there is no file.
    """
    data = read_bytes(path, WRITTEN)
    try:
        text = data.decode()
        _refuse_aliases(text)
    except YAML_ERRORS as error:
        raise not_yaml(path, error) from None
    return text


def not_yaml(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that is not YAML, one line."""
    return CheckpointError(f"{path} is not YAML: {_reason(error)}.")


def _refuse_aliases(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"it uses the alias *{event.anchor}, which is not taken: write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:  # before the parser's own stack ends
            raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem[:200]} at line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())[:200]


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:  # PyYAML would take the last of them
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_strict_yaml(path: Path) -> dict[Any, Any]:
    """Return the mapping in a YAML file, {} if empty. Raises CheckpointError, also for a repeated key."""
    found = yaml_value(path, _Strict)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no keys with values.")
    return found


def literal(value: Any) -> Any:
    """Return a value with its strings escaped, so that OmegaConf interpolates none of them."""
    if isinstance(value, dict):
        return {key: literal(child) for key, child in value.items()}
    if isinstance(value, list):
        return [literal(child) for child in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", value)
    return value
