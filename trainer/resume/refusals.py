"""What a resume refuses: files that are no checkpoints, a change that makes it another run, less sparsity.

What a record may not say is in config/recorded.py; a checkpoint of another run and one that does not verify
are refused in start.py, where they are looked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.storage.foreign import described
from peakpoint.checkpointing.storage.manifest import MILESTONE, PRODUCTION, TRAINING, read_manifest
from peakpoint.checkpointing.storage.quarantine import QUARANTINE
from peakpoint.trainer.config.hydra_overrides import OWN, flat, under

FROZEN = (
    *("model", "data", "label_noise", "seed", "batch_size", "optimizer.name"),
    *(f"pruning.{name}" for name in ("exclude", "embeddings", "pattern")),
)
"""What a resumed run may not change: it would no longer be the same run, or its masks of other weights."""
FREE = (
    *("data.root", "logger", "report", "plugins"),
    *(f"checkpoint.{name}" for name in ("mirror", "background", "compress", "name")),
)
"""Keys that say where things lie, how they are written and what is shown, and decide no result."""


def check_changes(cfg: DictConfig, saved: DictConfig, typed: tuple[str, ...]) -> list[str]:
    """Compare the composed configuration with the saved one; returns what the command line changed.

    Raises UserError for a change that is not allowed, or that the command line does not name: the files in
    conf/ may have changed since.
    """
    old, new = flat(saved), flat(cfg)
    wanted = asked(cfg, saved, typed)
    changed = changed_keys(cfg, saved)
    drift = [key for key in changed if key not in wanted]
    if drift and not cfg.accept_drift:
        key = drift[0]
        raise UserError(
            f"{key} was {old.get(key)} and is {new.get(key)} now, and the command does not name it: conf/ "
            f"has changed since. Add {key}={old.get(key)} to keep it, or accept_drift=true."
        )
    lines = []
    for key in changed:
        gone = _gone(key, new)
        lines.append(f"{gone}: removed" if gone else f"{key}: {old.get(key)} -> {new.get(key)}")
    return list(dict.fromkeys(lines))


def _gone(key: str, new: Mapping[str, Any]) -> str | None:
    """Return what `key` went with: the first node above it that the new configuration lacks."""
    names = key.split(".")
    above = (".".join(names[:count]) for count in range(1, len(names)))
    return next((node for node in above if not any(under(left, (node,)) for left in new)), None)


def asked(cfg: DictConfig, saved: DictConfig, typed: Sequence[str]) -> list[str]:
    """Return the keys that a command line changed. Raises UserError for a change that is not allowed."""
    old, new = flat(saved), flat(cfg)
    changed = changed_keys(cfg, saved)
    for key in sorted(changed, key=lambda key: not key.endswith(".name")):
        if under(key, FROZEN) and not under(key, FREE):
            raise UserError(
                f"{key} was {old.get(key)} in this run and is {new.get(key)} now: a resumed run keeps its "
                f"{', '.join(FROZEN)}. Start a new run instead."
            )
    # A group or an experiment that was named may change anything.
    free = bool({"experiment", "optimizer"} & set(typed))
    return [key for key in changed if free or under(key, tuple(typed))]


def changed_keys(cfg: DictConfig, saved: DictConfig) -> list[str]:
    """Return the keys whose values differ, less the settings that one of the two versions lacks."""
    old, new = flat(saved), flat(cfg)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    # An empty node is a leaf: where the other configuration has leaves in it, they are what changed.
    changed = [key for key in changed if not any(other.startswith(f"{key}.") for other in (*old, *new))]
    return [key for key in changed if not under(key, OWN) and not _of_one_version(key, cfg, saved)]


def _of_one_version(key: str, cfg: DictConfig, saved: DictConfig) -> bool:
    """Return whether a key is a setting that the typed node of the other configuration lacks."""
    new: Any = cfg
    old: Any = saved
    for name in key.split("."):
        if not isinstance(new, DictConfig) or not isinstance(old, DictConfig):
            return False
        if (name in new) != (name in old):
            return is_dataclass(OmegaConf.get_type(new))
        new, old = new._get_node(name), old._get_node(name)
    return False


def check_target(wanted: float, sparsity: float) -> None:
    """Raise UserError for a target below the sparsity of the network."""
    if wanted < sparsity:
        raise UserError(
            f"pruning.target={wanted:g} is below the sparsity of this network, {sparsity:g}, and pruned "
            "weights stay pruned: keep it with pruning=none, or let them grow back with pruning=regrow first."
        )


def check_file(root: Path, file: Path, go_on: str) -> None:
    """Raise UserError unless `file` is a checkpoint under `root` with its manifest; its bytes are not read.

    `go_on` is the end of a sentence: what to type instead.
    """
    if reason := _reason(root, file, go_on):
        raise UserError(f"{file} {reason}")


def _reason(root: Path, file: Path, go_on: str) -> str | None:
    tier = file.parent.name if file.parent.parent == root else None
    if tier == PRODUCTION:
        return (
            "is of a release, which holds weights alone and not the state of their training, so it cannot "
            f"be resumed: {go_on}, and peakpoint.load_model opens a release."
        )
    if tier == QUARANTINE:
        return f"was set aside as damaged: {go_on}."
    if tier not in (TRAINING, MILESTONE) or file.suffix not in (".pt", ".json"):
        return f"is not a checkpoint: {go_on}, and the files under {root} are those to choose from."
    mark = file.with_suffix(".json")
    if file == mark:
        return f"is a manifest: name the checkpoint beside it, {file.with_suffix('.pt').name}."
    if not mark.exists():
        return f"has no manifest beside it, so it cannot be resumed from: {go_on}.{described(file)}"
    try:
        read_manifest(mark)
    except CheckpointError as error:
        return f"cannot be verified: {error} {go_on}."
    return None
