"""Typed configuration to objects. The only file that sees the whole configuration."""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.policy import Outlook, Policy
from peakpoint.checkpointing.state.rng import restore_rng, rng_state
from peakpoint.models.macs import macs
from peakpoint.optimizers.clipping import clip_gradients
from peakpoint.optimizers.kernels import keep_strides
from peakpoint.optimizers.parameters import param_groups
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.settings import PruneSettings
from peakpoint.optimizers.scope import Scope
from peakpoint.optimizers.settings import Factor
from peakpoint.trainer.config import schema as c
from peakpoint.trainer.config.check import policies
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.loop import Loop, LoopSettings
from peakpoint.trainer.resume.pruning import FROM_THE_START, Ramp
from peakpoint.trainer.search.judge import judges
from peakpoint.trainer.state import Meter, Progress, TrainState, arithmetic, seed_everything

log = logging.getLogger("peakpoint")


@dataclass(frozen=True)
class Parts:
    """What a run consists of, before anything is restored."""

    data: DataModule
    state: TrainState
    loop: Loop
    policies: dict[str, Policy]
    total_steps: int


def set_up_torch(config: c.Config) -> torch.device:
    """Choose the device, the threads and the kernels. Raises UserError when the device is not there."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device is c.Device.cuda and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no CUDA device: use device=cpu or device=auto.")
    use_cuda = config.device is not c.Device.cpu and torch.cuda.is_available()
    if config.deterministic:
        # Read when CUDA starts; without it cuBLAS refuses to be deterministic.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(config.deterministic)
    torch.backends.cudnn.benchmark = not config.deterministic
    return torch.device("cuda" if use_cuda else "cpu")


def build(config: c.Config, resolved: dict[str, Any], ramp: Ramp = FROM_THE_START) -> Parts:
    """Return everything that trains; `resolved` is the configuration as plain values, for the record.

    `ramp` says where the ramp of pruning begins. Raises UserError for what only shows once data and network
    are there.
    """
    device = set_up_torch(config)
    seed_everything(config.seed)
    data = _read(config, device)
    whole = config.epochs * data.steps_per_epoch
    total = min(whole, config.max_steps or whole)
    try:
        model = build_model(config.model, data.image_shape, data.num_classes)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        model.to(device)
        optimizer = build_optimizer(config.optimizer, model, config.pruning.scope)
        ramped = prune_settings(config.pruning, data.steps_per_epoch, total, whole, ramp)
        pruning = Pruner(optimizer, ramped, config.seed) if ramped else None
        factor = build_schedule(config.scheduler, data.steps_per_epoch, total)
    except ValueError as error:
        raise UserError(str(error)) from None
    norm = clip_gradients(optimizer, config.optimizer.clip_norm)  # after the pruner: pruned ones do not count
    scheduler = LambdaLR(optimizer, factor)
    state = TrainState(
        model=torch.compile(model) if config.compile else model,  # type: ignore[arg-type]
        optimizer=optimizer,
        scheduler=scheduler,
        pruner=pruning,
        progress=Progress(),
        meter=Meter(),
        config=resolved,
        metadata={
            "image_shape": list(data.image_shape),
            "classes": list(data.classes),
            "mean": list(data.mean),
            "std": list(data.std),
            "data": data.fingerprint,
        },
        arithmetic=arithmetic(device),
    )
    loop = Loop(
        state,
        data,
        loop_settings(config),
        device=device,
        scope=config.pruning.scope,
        gradient_norm=norm,
        mask_version=lambda: pruning.mask_version if pruning else 0,
        skipped=lambda: _skip(scheduler, pruning),
    )
    named = {**policies(config.checkpoint), **judges(config)}
    planned = outlook(config, data.steps_per_epoch, ramped.end_step if ramped else 0)
    for policy in named.values():
        policy.prepare(planned)
    return Parts(data, state, loop, named, total)


def outlook(config: c.Config, steps_per_epoch: int, ramp_end: int = 0) -> Outlook:
    """Return the run as it is planned, whose evaluations are an upper bound."""
    whole = config.epochs * steps_per_epoch
    steps = min(whole, config.max_steps or whole)
    epochs = -(-steps // steps_per_epoch)
    evaluations = epochs + (steps // config.eval_every_steps if config.eval_every_steps else 0)
    return Outlook(epochs, steps, evaluations, config.pruning.target, ramp_end)


def _skip(scheduler: LambdaLR, pruning: Pruner | None) -> None:
    """Count a step that is left out: learning rate and ramp go by the run's steps, and end when it does."""
    if pruning:
        pruning.advance()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a scheduler that steps before its optimizer
        scheduler.step()


def _read(config: c.Config, device: torch.device) -> DataModule:
    """Return the data, also those that only the end of the run needs."""
    data = DataModule(
        config.data,
        seed=config.seed,
        batch_size=config.batch_size,
        eval_batch_size=config.eval_batch_size,
        device=device,
        channels_last=config.channels_last,
    )
    if config.label_noise:
        data.add_label_noise(config.label_noise)
    if config.test:
        try:
            data.read_test()
        except UserError as error:
            raise UserError(f"{error} The end of the run needs it; test=false does without.") from None
    return data


def loop_settings(config: c.Config) -> LoopSettings:
    """Return the loop's part of the configuration."""
    return LoopSettings(
        epochs=config.epochs,
        max_steps=config.max_steps,
        grad_accumulation=config.grad_accumulation,
        label_smoothing=config.label_smoothing,
        bf16=config.precision is c.Precision.bf16,
        skip_nonfinite=config.nonfinite is c.Nonfinite.skip,
        max_skipped=config.max_skipped,
        log_every=config.log_every,
        eval_every_steps=config.eval_every_steps,
    )


def build_model(cfg: Any, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """Return the network, for images (channels, height, width) and a number of classes."""
    cfg.check_size(*image_shape[1:])
    network: nn.Module = check_built("model", cfg.name, cfg.build(image_shape, num_classes))
    # Who asks for a network without values, to know its shapes, gets one.
    wanted = torch.get_default_device().type == "meta"
    empty = next((n for n, p in network.named_parameters() if is_lazy(p) or (p.is_meta and not wanted)), None)
    if empty is not None:
        raise ValueError(
            f"model.name={cfg.name}: {empty} has no values yet: let its build call the network once."
        )
    return network


def dense_macs(config: c.Config, data: DataModule) -> dict[str, int]:
    """Return the MACs for an image by weight; {} for a network that needs values to be called."""
    shape = data.image_shape
    random = rng_state()
    try:
        return macs(lambda: build_model(config.model, shape, data.num_classes), shape)
    except Exception:  # of a plugin's network on the meta device
        return {}
    finally:
        restore_rng(random)


def build_optimizer(cfg: Any, model: nn.Module, scope: Scope) -> Optimizer:
    """Return the optimizer over the network's parameters; weight decay on matrices and kernels alone."""
    built = cfg.build(param_groups(model, cfg.weight_decay, scope))
    optimizer: Optimizer = check_built("optimizer", cfg.name, built)
    keep_strides(optimizer)
    return optimizer


def prune_settings(
    cfg: c.Pruning, steps_per_epoch: int, total: int, whole: int, ramp: Ramp
) -> PruneSettings | None:
    """Return how to prune by steps of the run, or None when training is dense.

    Of the `whole` steps of all epochs, max_steps leaves `total`.
    """
    if cfg.target == 0 or cfg.criterion is None:
        return None
    start, end = (_pruning_step(cfg, which, steps_per_epoch, total, ramp) for which in ("start", "end"))
    start = max(start, ramp.begin)
    if start > end:
        raise UserError(f"Pruning would start at step {start} and end at step {end}: let it end later.")
    if end > whole and cfg.target > ramp.initial:
        raise UserError(
            f"Pruning would end at step {end}, after the last step {whole} of the run, and never reach "
            f"{100 * cfg.target:g} %: let it end before, or train for more epochs."
        )
    if end > total and cfg.target > ramp.initial:
        log.warning(
            "pruning ends at step %d, after the last step %d of this run: %.0f %% will not be reached.",
            end, total, 100 * cfg.target,
        )  # fmt: skip
    return PruneSettings(
        criterion=cfg.criterion,
        criterion_options=cfg.criterion_options,
        target=cfg.target,
        start_step=start,
        end_step=end,
        frequency=cfg.frequency,
        schedule=cfg.schedule,
        schedule_options=cfg.schedule_options,
        allocation=cfg.allocation,
        allocation_options=cfg.allocation_options,
        begin=ramp.begin,
        initial=ramp.initial,
        min_density=cfg.min_density,
        pattern=cfg.pattern,
        regrow=cfg.regrow.value,
        regrow_fraction=cfg.regrow_fraction,
        regrow_until=_of_the_rest(cfg.regrow_until, total, ramp),
    )


def _pruning_step(cfg: c.Pruning, which: str, steps_per_epoch: int, total: int, ramp: Ramp) -> int:
    """Return the step at which pruning starts or ends: given as a step, an epoch or a fraction of the run.

    A ramp that begins in the middle of a run has the fractions of what is left of it.
    """
    step: int | None = getattr(cfg, f"{which}_step")
    epoch: float | None = getattr(cfg, f"{which}_epoch")
    if step is not None:
        return step
    if epoch is not None:
        return round(epoch * steps_per_epoch)
    return _of_the_rest(getattr(cfg, f"{which}_fraction"), total, ramp)


def _of_the_rest(fraction: float, total: int, ramp: Ramp) -> int:
    return ramp.begin + round(fraction * max(0, total - ramp.begin))


def build_schedule(cfg: Any, steps_per_epoch: int, total: int) -> Factor:
    """Return the learning rate's factor as a function of the optimizer step."""
    warmup = round(cfg.warmup_epochs * steps_per_epoch)
    if warmup > total:
        log.warning(
            "the warm-up lasts %d steps, and this run %d: optimizer.lr will not be reached.", warmup, total
        )
    factor: Factor = check_built("scheduler", cfg.name, cfg.build(total, warmup))
    return factor


_BUILT: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "model": ("a torch.nn.Module", lambda found: isinstance(found, nn.Module)),
    "optimizer": ("a torch.optim.Optimizer", lambda found: isinstance(found, Optimizer)),
    "scheduler": ("a function of the step", callable),
    "logger": (
        "an object with __call__ and close",
        lambda found: callable(found) and callable(getattr(found, "close", None)),
    ),
}
"""Kind of component -> what its build returns, in words and as a test."""


def check_built(kind: str, name: str, found: Any) -> Any:
    """Return what a component's build has returned. Raises UserError unless it fits its kind."""
    wanted, fits = _BUILT[kind]
    if not fits(found):
        raise UserError(
            f"The build of the {kind} {name} has returned an object of type {type(found).__name__}: let it "
            f"return {wanted}."
        )
    return found
