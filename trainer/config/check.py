"""The configuration, checked by the ranges of its classes, the registry and the rules across fields.

`checked` turns what Hydra composed into the plain dataclasses of schema.py; past it no DictConfig exists.
Nothing here imports torch, so that a wrong value is refused at once.
"""

import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import fields, is_dataclass

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from peakpoint.base import registry
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.files import CONF
from peakpoint.base.text import json_text, nearest
from peakpoint.checkpointing.metrics import METRICS
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.storage.manifest import TIERS
from peakpoint.checkpointing.storage.naming import Template
from peakpoint.optimizers.pruning.pattern import parsed
from peakpoint.trainer.config import schema as c
from peakpoint.trainer.config import unheeded
from peakpoint.trainer.config.choices import CHOICES, LISTS, load_plugins
from peakpoint.trainer.config.explain import explain, unknown_key
from peakpoint.trainer.config.hydra_overrides import flat, keys
from peakpoint.trainer.data.settings import check_fits


def composed(overrides: Sequence[str]) -> c.Config:
    """Return the checked configuration that train.py would have with these overrides, and load its plugins.

    What only a start reads, hydra.* and resume=, is left out. Raises CheckpointError or UserError.
    """
    own = [override for override in overrides if not override.startswith(("hydra.", "resume="))]
    load_plugins(registry.named(own))
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return checked(hydra.compose("config", own), keys(own))
    except (HydraException, OmegaConfBaseException) as error:
        raise CheckpointError(explain(error)) from None


def checked(cfg: DictConfig, typed: Collection[str] = ()) -> c.Config:
    """Return the composed configuration as dataclasses: ranges, names and rules across fields are checked.

    `typed` are the keys of the command line. A pattern of pruning sets its target in `cfg`. Raises UserError,
    or CheckpointError for the template of names and too large a number: one sentence that names the key and
    what it may be.
    """
    _refuse_unknown_keys(cfg, "")
    _set_target(cfg, typed)
    config = plain(cfg)
    json_text(flat(cfg))  # what no record of the run can hold is refused before it trains
    _check_names(config)
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


def _set_target(cfg: DictConfig, typed: Collection[str]) -> None:
    """Set the target to what the pattern leaves, unless it was typed, or training is dense."""
    pruning = cfg.pruning
    if pruning.pattern and pruning.criterion is not None and "pruning.target" not in typed:
        with contextlib.suppress(ValueError):  # which `plain` says
            OmegaConf.update(cfg, "pruning.target", parsed(pruning.pattern).target)


def plain(cfg: DictConfig) -> c.Config:
    """Return the configuration as plain dataclasses, each value in its range. Raises UserError."""
    try:
        config: c.Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error.msg).splitlines()[0]}") from None
    except (ValueError, CheckpointError) as error:  # a value out of its range
        key, equals, rest = str(error).partition("=")
        raise UserError(f"{_set_as(cfg, key)}{equals}{rest}") from None
    return config


def _set_as(cfg: DictConfig, key: str) -> str:
    """Return the key whose value another key refers to; any other key as it is."""
    values = flat(cfg)
    while refers := re.fullmatch(r"\$\{([\w.]+)\}", str(values.get(key))):
        key = refers[1]
    return key


def name_template(config: c.Config) -> Template | None:
    """Return how checkpoint files are named, or None for the usual way."""
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
            raise UserError(
                f"{prefix}{key} has no value: set {prefix}{key}=VALUE{_values_file(node, prefix)}."
            )
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none():
            _refuse_unknown_keys(child, f"{prefix}{key}.")


def _values_file(node: DictConfig, prefix: str) -> str:
    """Return the advice to write the file of a component's values where it has none, else nothing."""
    group, name = CHOICES.get(prefix.removesuffix(".")), OmegaConf.select(node, "name")
    if group is None or name is None or (CONF / group / f"{name}.yaml").exists():
        return ""
    return f", or write all values in conf/{group}/{name}.yaml"


def _check_names(config: c.Config) -> None:
    """Require that each name is registered, whether the run uses it or not, and that no group is null."""
    for kind in ("model", "data", "optimizer", "scheduler"):
        node, known = getattr(config, kind), registry.table(kind)
        c.require(
            is_dataclass(node),
            f"conf/{CHOICES[kind]}: the file that is chosen names no component: its first line is "
            f"defaults: [/schema/{kind}/NAME@_here_, _self_].",
        )
        _one_of(kind, f"{kind}.name", node.name)
        c.require(
            known[node.name] is type(node),
            f"{kind}.name={node.name} cannot be set: choose {kind}={node.name} instead.",
        )
    for kind in c.PRUNING:
        if (name := getattr(config.pruning, kind)) is not None:
            _one_of(kind, f"pruning.{kind}", name)
    for kind, chosen in (("policy", config.checkpoint.policy), ("logger", config.logger)):
        known = registry.table(kind)
        for name, settings in chosen.items():
            c.require(
                type(settings) in known.values(),
                f"{LISTS[kind]}.{name} is not a registered {kind}{nearest(name, known)} {registry.OWN}",
            )


def _one_of(kind: str, key: str, value: str) -> None:
    known = registry.table(kind)
    c.require(value in known, f"{key}={value} is not a choice{registry.remedy(kind, value)}")


def _check_pruning(config: c.Config) -> None:
    """Require that each component of pruning has its options, and the optimizer the state that is read."""
    pruning = config.pruning
    state = config.optimizer.state
    needs: tuple[str, ...] = ()
    for kind in c.PRUNING:
        name, options = getattr(pruning, kind), getattr(pruning, f"{kind}_options")
        if name is None:
            c.require(not options, f"pruning.{kind}_options has no effect without a {kind}: leave it out.")
            continue
        try:
            needs = getattr(registry.make(kind, name, options), "needs", needs)
        except ValueError as error:
            raise UserError(f"pruning.{kind}_options: {error}") from None
    c.require(
        pruning.target == 0 or state is None or {*needs} <= {*state},
        f"pruning.criterion={pruning.criterion} scores weights by {' and '.join(needs)}, which "
        f"optimizer={config.optimizer.name} does not have: use pruning=magnitude or another optimizer.",
    )


def _check_lengths(config: c.Config) -> None:
    """Require that warm-up and ramp end within the run; build.py warns of what max_steps cuts off."""
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
    given = (pruning.start_step, pruning.start_epoch, pruning.end_step, pruning.end_epoch)
    for unit in ("step", "epoch", "fraction") if given == (None,) * 4 else ("step", "epoch"):
        start, end = (getattr(pruning, f"{which}_{unit}") for which in ("start", "end"))
        c.require(
            start is None or end is None or start <= end,
            f"pruning.start_{unit}={start} is after pruning.end_{unit}={end}: let it start before.",
        )


def _check_images(config: c.Config) -> None:
    """Require that the images, by what is known unread, fit the network, the batch and the augmentation."""
    data = config.data
    native = data.facts.side
    check_fits(data, config.batch_size, data.facts.images, native)
    side = data.image_size or native
    if side is not None:
        try:
            config.model.check_size(side, side)
        except ValueError as error:
            raise UserError(str(error)) from None


def policies(checkpoint: c.Checkpoint) -> dict[str, Policy]:
    """Return the policies of a run by name. Raises UserError for a build that returns something else."""
    built = {name: settings.build() for name, settings in checkpoint.policy.items()}
    for name, policy in built.items():
        c.require(
            isinstance(policy, Policy),
            f"The build of the policy {name} has returned an object of type {type(policy).__name__}: let it "
            "return a Policy.",
        )
    return built


def _check_mirror(checkpoint: c.Checkpoint) -> None:
    """Require that checkpoint.mirror.what names what this run saves."""
    built = policies(checkpoint)
    known = {*TIERS, *built, *(tag for policy in built.values() for tag in policy.tags)}
    for word in checkpoint.mirror.what:
        c.require(
            word in known,
            f"checkpoint.mirror.what: {word} is no tier, role or policy of this run{nearest(word, known)}",
        )


def _check_metrics(checkpoint: c.Checkpoint) -> None:
    """Require that every watched metric is measured, and watched in the way that is better."""
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
