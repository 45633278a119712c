"""The keys of the configuration, and which one people mean who know it by another library's name."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from peakpoint.base.text import closest
from peakpoint.checkpointing.state.differences import flat
from peakpoint.trainer.config.hydra_overrides import split

SYNONYMS = {
    "lr": "learning_rate base_lr max_lr learningrate",
    "batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size",
    "epochs": "epoch num_epochs max_epochs n_epochs num_train_epochs",
    "weight_decay": "wd decay",
    "momentum": "mom",
    "beta1": "betas beta",
    "seed": "random_seed manual_seed",
    "target": "sparsity target_sparsity final_sparsity amount",
    "device": "gpu gpus accelerator",
    "precision": "amp fp16 bf16 mixed_precision",
    "clip_norm": "clip grad_clip max_grad_norm gradient_clip_val",
    "grad_accumulation": "accumulate_grad_batches gradient_accumulation_steps grad_accum",
    "data": "dataset",
    "root": "data_dir data_path data_root dataset_path",
    "model": "network net arch",
    "optimizer": "optim opt optimiser",
    "scheduler": "lr_scheduler",
    "max_steps": "steps num_steps total_steps",
    "warmup_epochs": "warmup warmup_steps",
    "label_smoothing": "smoothing",
    "resume": "ckpt ckpt_path checkpoint_path resume_from resume_from_checkpoint",
    "hydra.run.dir": "output_dir out_dir save_dir logdir log_dir",
}
"""Our name -> what others call it."""

_OURS = {theirs: ours for ours, names in SYNONYMS.items() for theirs in names.split()}


RENAMED = {
    "pruning.method": "pruning",
    "pruning.variant": "pruning.criterion",
    "optimizer.variant": "pruning.criterion",
    "checkpoint.mirror": "checkpoint.mirror.url",
    "checkpoint.mirror_what": "checkpoint.mirror.what",
    "checkpoint.mirror_keep": "checkpoint.mirror.keep",
    "checkpoint.mirror_queue": "checkpoint.mirror.queue",
    "checkpoint.mirror_wait_s": "checkpoint.mirror.wait_s",
    "checkpoint.mirror_timeout_s": "checkpoint.mirror.timeout_s",
    "checkpoint.policy.interval.epochs": "checkpoint.interval",
    "checkpoint.policy.interval.steps": "checkpoint.interval_steps",
    "checkpoint.policy.wall_clock.minutes": "checkpoint.interval_minutes",
    "tensorboard": "logger",
}
"""The key of an earlier version, or of a value that refers to another -> the one to set."""

LISTS = {"policy": "checkpoint.policy", "logger": "logger"}
"""A kind of component of which a run has several -> the key that holds them by name."""


def renamed(override: str) -> str | None:
    """Return the override to use in place of one whose key is not set any more, None for any other."""
    key, value = split(override)
    new = RENAMED.get(str(key))
    if new is None or value.startswith("{"):
        return None
    if key == "tensorboard":
        return f"{new}=[{','.join(_loggers(value))}]"
    return override.replace(str(key), new, 1)


def _loggers(tensorboard: Any) -> list[str]:
    """Return the loggers of a run by the switch of earlier versions."""
    off = str(tensorboard).lower() in ("false", "no", "off", "0")
    return ["console"] if off else ["console", "tensorboard"]


def current_override(override: str) -> str:
    """An override of a record with its key replaced by that of today."""
    return renamed(override) or override


def current_config(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with the keys of today, interpolations as they are."""
    found: dict[str, Any] = {}
    for key, value in _with_loggers(_with_criterion(flat(recorded))).items():
        new = RENAMED.get(key, key)
        if new != key and value == f"${{{new}}}":
            continue
        *folders, name = new.split(".")
        node = found
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = value
    return found


def _with_criterion(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a configuration with one criterion, where `method` and two variants were."""
    if "pruning.method" not in leaves:
        return leaves
    method, variant = leaves.pop("pruning.method"), leaves.pop("pruning.variant", None)
    of_optimizer = leaves.pop("optimizer.variant", "bitter7")
    by_state = of_optimizer if str(variant).startswith("${") else variant
    criterion = {"state": by_state, "none": None, "regrow": None}.get(method, method)
    return {**leaves, "pruning.criterion": criterion, "pruning.regrow": method == "regrow"}


def _with_loggers(leaves: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a configuration with loggers, where a switch for one of them was."""
    if "tensorboard" not in leaves:
        return leaves
    chosen = _loggers(leaves.pop("tensorboard"))
    return {**leaves, **{f"logger.{name}": {} for name in chosen}}


def leaves() -> dict[str, Any]:
    """Every key of the registered schemas with its type, such as optimizer.lr: float."""
    found: dict[str, Any] = {}
    for group, members in ConfigStore.instance().repo.get("schema", {}).items():
        nodes = members.items() if isinstance(members, dict) else [("", members)]
        for name, node in nodes:
            kind = OmegaConf.get_type(node.node)
            where = f"{LISTS[group]}.{name.removesuffix('.yaml')}" if group in LISTS else group
            found |= _fields(kind, "" if group == "config.yaml" else f"{where}.")
    return found


def _fields(kind: Any, prefix: str) -> dict[str, Any]:
    """The types of a dataclass's fields by their keys, those of the dataclasses in it too."""
    found: dict[str, Any] = {}
    for name, inner in get_type_hints(kind).items() if is_dataclass(kind) else ():
        found |= {f"{prefix}{name}": inner, **_fields(inner, f"{prefix}{name}.")}
    return found


def meant(key: str, known: Iterable[str], prefix: str = "") -> str | None:
    """The whole key that was meant by `key`, where the names in `known` are those behind `prefix`."""
    if new := RENAMED.get(f"{prefix}{key}"):
        return new
    names = {name.lower(): name for name in known}
    wanted = [key.lower(), _OURS.get(key.lower(), key.lower())]
    for word in reversed(wanted):
        if word in names:
            return f"{prefix}{names[word]}"
        if "." in word:
            return word
    close = closest(wanted[0], names.values())
    if prefix and close:
        return f"{prefix}{close}"
    everywhere = sorted(leaves(), key=lambda leaf: (leaf.count("."), leaf))
    for leaf in everywhere:
        if leaf.rpartition(".")[2] in wanted:
            return RENAMED.get(leaf, leaf)
    if close:
        return close
    last = {leaf.rpartition(".")[2]: leaf for leaf in reversed(everywhere)}
    close = closest(wanted[0], last, 0.75)
    return last[close] if close else None
