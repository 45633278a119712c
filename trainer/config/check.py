"""The configuration, checked: registered with Hydra by type, then by the rules that span several fields.

`checked` turns what Hydra composed into the plain dataclasses of config.py; past it no DictConfig exists.
"""

from collections.abc import Collection, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import registry
from peakpoint.base.errors import UserError
from peakpoint.base.files import CONF
from peakpoint.base.text import nearest
from peakpoint.checkpointing import policies  # noqa: F401 (registers)
from peakpoint.checkpointing.metrics import METRICS
from peakpoint.checkpointing.storage.manifest import TIERS
from peakpoint.checkpointing.storage.naming import Template
from peakpoint.models import catalogue as networks  # noqa: F401 (registers)
from peakpoint.optimizers import catalogue as optimizers  # noqa: F401 (registers)
from peakpoint.trainer.config import names, unheeded
from peakpoint.trainer.config import schema as c
from peakpoint.trainer.config.keys import LISTS, meant
from peakpoint.trainer.data import sources  # noqa: F401 (registers)
from peakpoint.trainer.data.settings import check_fits
from peakpoint.trainer.listeners import console, tensorboard  # noqa: F401 (registers)

CHOICES: dict[str, str] = {
    "model": "model",
    "data": "data",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "policy": "checkpoint/policy",
    "logger": "logger",
}
"""The group of conf/ in which a component of a kind is chosen."""

SHARED: dict[str, dict[str, type]] = {
    "pruning": {"pruning": c.Pruning},
    "checkpoint": {"checkpoint": c.Checkpoint},
}
"""Classes of settings that several choices of a group have."""


def register_schemas() -> None:
    """Give Hydra the classes of all settings; they have a group of their own that no list of choices shows.

    A component without a file in conf/ is a choice with the values that its class has.
    """
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=c.Config, package="_global_")
    for kind, group in CHOICES.items():
        for name, settings in registry.table(kind).items():
            if not is_dataclass(settings):
                continue
            store.store(group=f"schema/{kind}", name=name, node=settings)
            if not (CONF / group / f"{name}.yaml").exists():
                store.store(group=group, name=name, node=_choice(kind, name, settings))
    for group, members in SHARED.items():
        for name, schema in members.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    before = {"before": {"_target_": "peakpoint.trainer.run_directory.Before"}}
    store.store(group="hydra/callbacks", name="peakpoint", node=before, package="hydra.callbacks")


def _choice(kind: str, name: str, settings: Any) -> Any:
    """The values that a class has by itself, as a choice of its group."""
    node = OmegaConf.structured(settings)
    if kind in LISTS:
        return {name: node}
    node.name = name
    return node


def load_plugins(modules: Iterable[str]) -> None:
    """Import modules, and offer what they register. Raises CheckpointError for one that is not there."""
    registry.load(modules)
    register_schemas()


def checked(cfg: DictConfig, typed: Collection[str] = ()) -> c.Config:
    """The composed configuration as plain dataclasses, with ranges, names and rules across fields checked.

    `typed` are the keys of the command line. Raises UserError, or CheckpointError for settings of policies
    and the template of names: one sentence that names the key and what it may be.
    """
    _refuse_unknown_keys(cfg, "")
    config = plain(cfg)
    _check_groups(config)
    names.check(config)
    _check_pruning(config)
    _check_lengths(config)
    _check_images(config)
    _check_metrics(config.checkpoint)
    _check_mirror(config.checkpoint)
    for line in unheeded.idle(cfg, config, typed):
        raise UserError(line)
    if template := name_template(config):
        template.check(METRICS)
    return config


def plain(cfg: DictConfig) -> c.Config:
    """The configuration as plain dataclasses, each value in its range. Raises UserError."""
    try:
        config: c.Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error.msg).splitlines()[0]}") from None
    except ValueError as error:  # a value out of its range
        raise UserError(str(error)) from None
    return config


def name_template(config: c.Config) -> Template | None:
    """How checkpoint files are named, or None for the usual way."""
    if config.checkpoint.name is None:
        return None
    facts = {kind: getattr(config, kind).name for kind in ("model", "optimizer", "data")}
    return Template(config.checkpoint.name, {**facts, "seed": config.seed})


def _refuse_unknown_keys(node: DictConfig, prefix: str) -> None:
    """Refuse what `+key=value` adds: Hydra lets it into a typed node without a word."""
    kind = OmegaConf.get_type(node)
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else None
    for name in node:
        key = str(name)
        if known is not None and key not in known:
            raise UserError(unknown_key(prefix, key, known))
        if OmegaConf.is_missing(node, key):
            raise UserError(f"{prefix}{key} has no value: set {prefix}{key}=VALUE.")
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown_keys(child, f"{prefix}{key}.")


def unknown_key(prefix: str, key: str, known: Iterable[str]) -> str:
    """The sentence for a key that does not exist; `prefix` is the path to it with its last dot."""
    there = sorted(known)
    found = meant(key, there, prefix)
    end = (
        f": did you mean {found}?"
        if found and found != f"{prefix}{key}"
        else f"; there are: {', '.join(there)}."
    )
    return f"{prefix}{key} is not a key of this configuration{end}"


def _check_groups(config: c.Config) -> None:
    """No group was set to null, and every policy and logger is one that is registered."""
    for group in ("model", "data", "optimizer", "scheduler"):
        node = getattr(config, group)
        c.require(is_dataclass(node), f"{group}={node} is not a choice; python train.py --help lists them.")
    for kind, chosen in (("policy", config.checkpoint.policy), ("logger", config.logger)):
        known = registry.table(kind)
        for name, settings in chosen.items():
            c.require(
                type(settings) in known.values(),
                f"{LISTS[kind]}.{name} is no {kind} that is registered{nearest(name, known)}",
            )


def _check_pruning(config: c.Config) -> None:
    """The optimizer has the state that the criterion reads."""
    pruning = config.pruning
    state = config.optimizer.state
    needs = registry.find("criterion", pruning.criterion).needs if pruning.criterion else ()
    c.require(
        pruning.target == 0 or state is None or {*needs} <= {*state},
        f"pruning.criterion={pruning.criterion} scores weights by {' and '.join(needs)}, which "
        f"optimizer={config.optimizer.name} does not have: use pruning=magnitude or another optimizer.",
    )


def _check_lengths(config: c.Config) -> None:
    """What is to happen within the run ends with it. What max_steps cuts off is told when it is known."""
    warmup, pruning, epochs = config.scheduler.warmup_epochs, config.pruning, config.epochs
    c.require(
        warmup <= epochs,
        f"scheduler.warmup_epochs={warmup:g} is more than epochs={epochs}: optimizer.lr is never reached.",
    )
    if pruning.target == 0:
        return
    c.require(
        pruning.end_epoch is None or pruning.end_epoch <= epochs,
        f"pruning.end_epoch={pruning.end_epoch} is after epochs={epochs}: pruning.target={pruning.target:g} "
        "would never be reached.",
    )
    for unit in ("step", "epoch"):
        start, end = (getattr(pruning, f"{which}_{unit}") for which in ("start", "end"))
        c.require(
            start is None or end is None or start <= end,
            f"pruning.start_{unit}={start} is after pruning.end_{unit}={end}: let it start before.",
        )
    given = (pruning.start_step, pruning.start_epoch, pruning.end_step, pruning.end_epoch)
    c.require(
        any(value is not None for value in given) or pruning.start_fraction <= pruning.end_fraction,
        f"pruning.start_fraction={pruning.start_fraction:g} is after "
        f"pruning.end_fraction={pruning.end_fraction:g}: let it start before.",
    )


def _check_images(config: c.Config) -> None:
    """What of the images is known before they are read fits the network, the batch and the augmentation."""
    data = config.data
    native = data.facts.side
    check_fits(data, config.batch_size, data.facts.images, native)
    side = data.image_size or native
    if side is not None:
        try:
            config.model.check_size(side, side)
        except ValueError as error:
            raise UserError(str(error)) from None


def _check_mirror(checkpoint: c.Checkpoint) -> None:
    """checkpoint.mirror.what names what this run saves."""
    built = {name: settings.build() for name, settings in checkpoint.policy.items()}
    known = {*TIERS, *built, *(tag for policy in built.values() for tag in policy.tags)}
    for word in checkpoint.mirror.what:
        c.require(
            word in known,
            f"checkpoint.mirror.what: {word} is no tier, role or policy of this run{nearest(word, known)}",
        )


def _check_metrics(checkpoint: c.Checkpoint) -> None:
    """Every metric that something watches is one that is measured, watched in the way that is better."""
    watched = {"checkpoint.monitor": (checkpoint.monitor.metric, checkpoint.monitor.mode)}
    for name, policy in checkpoint.policy.items():
        where = f"checkpoint.policy.{name}"
        if hasattr(policy, "metric"):
            watched[where] = (policy.metric, policy.mode)
        for metric, rule in getattr(policy, "metrics", {}).items():
            watched[f"{where}.metrics.{metric}"] = (metric, rule.mode)
    for where, (metric, mode) in watched.items():
        c.require(metric in METRICS, f"{where}: {metric} is not measured{nearest(metric, METRICS)}")
        better = METRICS[metric].better
        c.require(
            mode == better,
            f"{where}: {metric} is better the {'higher' if better == 'max' else 'lower'} it is: "
            f"set its mode to {better}.",
        )
