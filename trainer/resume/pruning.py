"""Pruned weights at a resume: they stay pruned, unless `pruning=regrow` is given."""

import logging
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from peakpoint.base.bounded import literal
from peakpoint.base.errors import restoring
from peakpoint.trainer.config.schema import Regrow
from peakpoint.trainer.resume import refusals

log = logging.getLogger("peakpoint")


@dataclass(frozen=True)
class Ramp:
    """Where a ramp of pruning begins: a step of the run, and the sparsity of the network at it."""

    begin: int
    initial: float


FROM_THE_START = Ramp(0, 0.0)


@restoring("pruning")
def resumed(cfg: DictConfig, saved: dict[str, Any] | None) -> tuple[DictConfig, Ramp]:
    """Return the configuration of a run that goes on from a checkpoint, and the ramp of its pruning.

    A target of 0 becomes the sparsity that the network has, so that policies and reports count what is true.
    `saved` loses its masks with pruning=regrow. Raises UserError for a target below the present sparsity,
    CheckpointError for a pruning state of another form.
    """
    if saved is None:
        return cfg, FROM_THE_START
    before: dict[str, Any] = saved.get("optimizer_state_dict", {}).get("pruning", {})
    sparsity = float(before.get("sparsity", 0.0))
    if cfg.pruning.regrow is Regrow.all and sparsity:
        log.warning("pruning=regrow: the %.2f %% that were pruned are trained again", 100 * sparsity)
        sparsity = 0.0
    target = float(cfg.pruning.target)
    if target == 0 and sparsity:
        log.info("%.2f %% of the weights stay pruned; pruning=regrow lets them grow back", 100 * sparsity)
        target = sparsity
    refusals.check_target(target, sparsity)
    if target == 0:
        saved.get("optimizer_state_dict", {}).pop("pruning", None)
        return cfg, FROM_THE_START
    cfg = cfg.copy()
    OmegaConf.update(cfg, "pruning.target", target)
    settings = before.get("settings", {})
    if cfg.pruning.criterion is None:
        OmegaConf.update(cfg, "pruning.criterion", str(settings["criterion"]))
        OmegaConf.update(cfg, "pruning.criterion_options", literal(settings.get("criterion_options", {})))
    if settings.get("target") == target:
        return cfg, Ramp(int(settings.get("begin", 0)), float(settings.get("initial", 0.0)))
    step = int(saved["progress"]["step"])
    if target > sparsity:
        log.info("pruning goes on at step %d, from %.2f %% to %.2f %%", step, 100 * sparsity, 100 * target)
    return cfg, Ramp(step, sparsity)
