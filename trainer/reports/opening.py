"""What a run says before its first step: network, data, optimizer and pruning, checkpoints."""

from collections.abc import Iterator
from pathlib import Path

from peakpoint.base.disk_space import in_words
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.state.rng import restore_rng, rng_state
from peakpoint.trainer.build import Parts
from peakpoint.trainer.config.schema import Config
from peakpoint.trainer.sweep import storage


def opening(config: Config, parts: Parts, checkpoints: Path) -> Iterator[str]:
    """Yield a line for each: aligned, the subject first."""
    for subject, facts in (
        ("network", _network(config, parts)),
        ("data", _data(config, parts)),
        ("optimizer", _optimizer(config, parts)),
        ("checkpoints", f"{_disk_use(config, parts)}in {checkpoints}"),
    ):
        yield f"{subject:<13}{facts}"


def _network(config: Config, parts: Parts) -> str:
    found = parts.loop.zeros()
    prunable = shown("sparsity", found.prunable_count / found.overall_count)
    device = parts.state.arithmetic["device"]
    return (
        f"{config.model.name}: {found.overall_count:,} parameters, {prunable} of them prunable; "
        f"on {parts.loop.device.type} ({device}) in {config.precision.value}"
    )


def _data(config: Config, parts: Parts) -> str:
    data = parts.data
    sizes = [f"{data.fingerprint[f'{split}_size']:,} {split}" for split in ("train", "val")]
    if data.test_fingerprint:
        sizes.append(f"{data.test_fingerprint['test_size']:,} test")
    return (
        f"{config.data.name}: {', '.join(sizes)} images; {data.steps_per_epoch:,} steps an epoch, "
        f"{parts.total_steps:,} in all"
    )


def _optimizer(config: Config, parts: Parts) -> str:
    facts = f"{config.optimizer.name}, lr {config.optimizer.lr:g}; "
    if parts.state.pruner is None:
        return f"{facts}no pruning"
    ramp = parts.state.pruner.settings
    return (
        f"{facts}pruning by {ramp.criterion} to {shown('sparsity', ramp.target)} of the prunable weights, "
        f"steps {ramp.start_step:,} to {ramp.end_step:,}"
    )


def _disk_use(config: Config, parts: Parts) -> str:
    """Return how many checkpoints are kept at once and their bytes, or "" where it cannot be estimated."""
    random = rng_state()
    try:
        sizes = storage.measured(config, parts.data.image_shape, parts.data.num_classes)
    except Exception:  # a network or optimizer of a plugin may need values, which it has not here
        return ""
    finally:
        restore_rng(random)
    numbers = storage.kept(config, parts.data.steps_per_epoch)
    count = sum(number or 0 for number in numbers.values())
    one = sizes.stored(config.pruning.target, compress=config.checkpoint.compress)
    unknown = [name for name, number in numbers.items() if number is None]
    more = f" and those of {', '.join(unknown)}" if unknown else ""
    return f"at most {count}{more} at once, {in_words(one)} each, {in_words(count * one)} in all, "
