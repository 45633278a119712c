"""Errors of Hydra and OmegaConf as one clear line."""

import re

from hydra.core.config_store import ConfigStore
from hydra.errors import MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base.errors import os_reason
from peakpoint.base.files import CONF
from peakpoint.base.text import nearest
from peakpoint.trainer.config.check import unknown_key
from peakpoint.trainer.config.keys import RENAMED, leaves

WANTED = {"Integer": "a whole number", "Float": "a number", "bool": "true or false"}
"""OmegaConf's types, in words."""


def explain(error: BaseException) -> str:
    """What was wrong, and what to do, in one line."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        word = f"{group}={option}" if group else f"--config-name {option}"
        return f"{word} is not a choice{nearest(option, choices(group))}"
    if isinstance(error, OSError) and not isinstance(error, MissingConfigException):
        return f"{error.filename or 'a file'}: {os_reason(error)}."
    if lacking := re.match(r"Could not delete (?:from config\. )?'(.*?)'", str(error)):
        return f"~{lacking[1]} removes nothing, since this configuration has no {lacking[1]}: leave it out."
    cause: BaseException = error
    while deeper := cause.__cause__ or (
        # Hydra names the file that is wrong and leaves the reason to the context.
        None if isinstance(cause, OmegaConfBaseException) else cause.__context__
    ):
        cause = deeper
    if not isinstance(cause, OmegaConfBaseException) or cause.full_key is None:
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    first = str(cause).splitlines()[0]
    if re.match(r"Key '.*' (is )?not in ", first) and cause.parent_node is not None:
        key = str(cause.key)
        return unknown_key(cause.full_key.removesuffix(key), key, map(str, cause.parent_node))
    if "is not Optional" in first:
        return f"{cause.full_key}=null: it needs a value."
    if "missing mandatory value" in first:
        return f"{cause.full_key} has no value."
    kinds = r"Value '(.*)' (?:of type '.*' could not be converted to|is not a valid) (\w+)"
    if wrong := re.match(kinds, first):
        value, kind = wrong[1], WANTED.get(wrong[2], wrong[2])
        percent = re.fullmatch(r"([\d.]+) ?%", value)
        end = f": type {cause.full_key}={float(percent[1]) / 100:g}" if percent else "."
        return f"{cause.full_key}={value} is not {kind}{end}"
    if wrong := re.match(r".*: \w+ is not a subclass of (\w+)\. value: (.*)", first):
        named = (key for key, kind in leaves().items() if getattr(kind, "__name__", "") == wrong[1])
        node = next(named, str(cause.full_key) or wrong[1].lower())
        return (
            f"{node}: {wrong[2]} stands where keys are expected, such as {RENAMED.get(node, f'{node}.KEY')}."
        )
    if wrong := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", first):
        return f"{cause.full_key}={wrong[1]} is not a choice{nearest(wrong[1], wrong[2].split(', '))}"
    return f"{cause.full_key}: {first.rstrip('.')}."


def all_choices() -> str:
    """A line for each group with its options, for --help."""
    return "\n".join(f"{name}: {', '.join(choices(name))}" for name in groups())


def groups() -> list[str]:
    """The groups of conf/ that a choice is made in, such as optimizer and checkpoint/policy."""
    folders = sorted(p.relative_to(CONF).as_posix() for p in CONF.rglob("*") if p.is_dir())
    return [name for name in folders if not name.startswith(("hydra", "release", "schema", "__"))]


def choices(group: str) -> list[str]:
    """The options of a group: files in conf/, and what plugins have registered."""
    found = {path.stem for path in (CONF / group).glob("*.yaml")}
    registered = ConfigStore.instance().repo
    for part in group.split("/"):
        registered = registered.get(part, {})
    return sorted(found | {name.removesuffix(".yaml") for name in registered if name.endswith(".yaml")})
