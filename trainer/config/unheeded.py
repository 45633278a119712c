"""Find typed keys without effect, which are refused, and policies that cannot act, which are warned of."""

import re
from collections.abc import Collection, Iterator

from omegaconf import DictConfig, OmegaConf

from peakpoint.checkpointing.policies.early_stopping import EarlyStopping
from peakpoint.checkpointing.policies.sparsity import Sparsity
from peakpoint.trainer.config import schema as c

SHARED = {
    "checkpoint.interval": "add interval to checkpoint/policy",
    "checkpoint.interval_steps": "add interval to checkpoint/policy",
    "checkpoint.interval_minutes": "add wall_clock to checkpoint/policy",
    "checkpoint.keep_last": "add interval or wall_clock to checkpoint/policy",
}
"""Keys that work only where another value refers to them, and what brings such a value."""


def idle(cfg: DictConfig, config: c.Config, typed: Collection[str]) -> Iterator[str]:
    """Yield sentences on keys that were typed and have no effect; `cfg` is the configuration as composed."""
    written = OmegaConf.to_yaml(cfg, resolve=False)
    for key, remedy in SHARED.items():
        if key in typed and not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b(?!\.)", written):
            yield f"{key} has no effect here, since nothing refers to it: {remedy}, or leave it out."
    for end in ("start", "end"):
        given = [
            f"pruning.{end}_{unit}"
            for unit in ("step", "epoch")
            if getattr(config.pruning, f"{end}_{unit}") is not None
        ]
        key = f"pruning.{end}_fraction"
        if key in typed and given:
            yield f"{key} has no effect beside {''.join(given)}: keep one of them."
    for key in typed:
        inner = key.startswith("checkpoint.mirror.") and key != "checkpoint.mirror.url"
        if inner and config.checkpoint.mirror.url is None:
            yield f"{key} has no effect without a mirror: add checkpoint.mirror.url=URL, or leave it out."


def doubts(config: c.Config, typed: Collection[str]) -> list[str]:
    """Return sentences on what the policies wait for and this run cannot bring."""
    found = []
    for name, settings in config.checkpoint.policy.items():
        key = f"checkpoint.policy.{name}"
        if isinstance(settings, EarlyStopping) and config.eval_every_steps is None:
            first = settings.from_epoch or 0
            bounds = (settings.stop_at, settings.diverged_at)
            counted = config.epochs - max(0, first - 1)
            if counted <= 0 or (bounds == (None, None) and settings.patience >= counted):
                since = f" from epoch {first} on" if first > 1 else ""
                found.append(
                    f"{key} cannot stop this run: patience={settings.patience}, and there are "
                    f"{max(0, counted)} evaluations{since}."
                )
        if isinstance(settings, Sparsity) and f"{key}.targets" in typed:
            slack = settings.tolerance if settings.rule == "window" else 0.0
            high = [t for t in settings.targets if t - slack > config.pruning.target]
            if high:
                found.append(
                    f"{key}.targets: {', '.join(f'{t:g}' for t in high)} cannot be reached with "
                    f"pruning.target={config.pruning.target:g}."
                )
    return found
