"""YAML files that people write: plain values, and a key that is there twice is a mistake."""

from pathlib import Path
from typing import Any

import yaml

from checkpointing.errors import CheckpointError


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:  # PyYAML would take the last of them
                raise yaml.MarkedYAMLError(problem=f"{key.value} is there twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[Any, Any]:
    """The keys and values of a file; nothing for an empty one. Raises CheckpointError, one line."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Strict)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not YAML: {_reason(error)}.") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no keys with values.")
    return found


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f"{error.problem} at line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())
