"""YAML files that people write: plain values, and a key that is there twice is a mistake."""

import re
from pathlib import Path
from typing import Any

import yaml

from checkpointing import bounded


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
    return bounded.read_yaml(path, _Strict)


def literal(value: Any) -> Any:
    """A value whose strings OmegaConf does not take for references to keys or to the environment."""
    if isinstance(value, dict):
        return {key: literal(child) for key, child in value.items()}
    if isinstance(value, list):
        return [literal(child) for child in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: f"{2 * found[1]}\\${{", value)
    return value
