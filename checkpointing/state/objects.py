"""Model, optimizer and scheduler in memory, and the saved state that describes them."""

import contextlib
import io
import itertools
import logging
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from peakpoint.base.errors import CheckpointError, first_line
from peakpoint.checkpointing.state import optimizer_state, serialize
from peakpoint.checkpointing.state.rng import restore_rng

log = logging.getLogger("peakpoint")

HEAVY = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "rng_state")
"""Keys that are loaded into objects; the rest of a checkpoint is for the caller."""

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


class Stateful(Protocol):
    """Anything with memory: an optimizer, a learning rate scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the memory as tensors and plain types."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore it."""
        ...


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        inner = model.module if isinstance(model, _WRAPPERS) else getattr(model, "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def canonical(key: str) -> str:
    """Return a key without the `_orig_mod` of a compiled part."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def weights(model: nn.Module) -> dict[str, Any]:
    """Return the network's state under canonical keys, not copied."""
    return {canonical(key): value for key, value in unwrap(model).state_dict().items()}


def check_finite(model: nn.Module) -> None:
    """Raise CheckpointError for a parameter without values, or a NaN or an infinity in the network."""
    for name, tensor in unwrap(model).named_parameters():
        if is_lazy(tensor) or tensor.is_meta:
            raise CheckpointError(
                f"{canonical(name)} has no values yet: call the network once, or move it to a device, and "
                "save it then."
            )
    if (bad := nonfinite(model)) is not None:
        raise serialize.not_finite(bad)


def nonfinite(model: nn.Module) -> str | None:
    """Return the name of the first parameter or running statistic with a NaN or an infinity, or None.

    Other buffers may hold them, as masks do.
    """
    inner = unwrap(model)
    tensors: dict[str, Any] = dict(inner.named_parameters())
    for prefix, layer in inner.named_modules():
        if isinstance(layer, _NormBase):
            tensors |= layer.named_buffers(prefix, recurse=False)
    found = serialize.nonfinite({name: tensor for name, tensor in tensors.items() if not is_lazy(tensor)})
    return None if found is None else canonical(found)


def restore(
    saved: Mapping[str, Any],
    model: nn.Module,
    optimizer: Stateful | None,
    scheduler: Stateful | None,
    *,
    rng: bool,
) -> dict[str, Any]:
    """Load a checkpoint's contents into objects, the random number generators last; returns the rest.

    Raises CheckpointError when the model or the optimizer is not in it or does not fit, and leaves both as
    they were. A schedule that is not in it, or is another, is a warning and under `not_restored`.
    """
    needed = ["model_state_dict", *["optimizer_state_dict"] * (optimizer is not None), *["rng_state"] * rng]
    for key in needed:
        if saved.get(key) is None:
            raise CheckpointError(
                f"This checkpoint holds no {key}, so it cannot be loaded into a training that needs it."
            )
    if optimizer is not None:  # before any object is changed
        optimizer_state.check_kind(optimizer, saved["optimizer_state_dict"], saved.get("optimizer"))
    with _as_they_were_unless_it_fits(model, optimizer):
        load_weights(model, saved["model_state_dict"])
        if optimizer is not None:
            for line in optimizer_state.load(optimizer, saved["optimizer_state_dict"], keep_settings=False):
                log.warning("%s", line)
    rest = {key: value for key, value in saved.items() if key not in HEAVY}
    rest["not_restored"] = _restore_schedule(saved.get("scheduler_state_dict"), scheduler, resumed=rng)
    if rng:
        restore_rng(saved["rng_state"])
    return rest


@contextlib.contextmanager
def _as_they_were_unless_it_fits(model: nn.Module, optimizer: Stateful | None) -> Iterator[None]:
    """Restore the model and the optimizer when the block raises.

    torch loads what fits and then raises. Only its own loading knows what fits, as layers may rename and add
    entries, so the weights are copied before, to the CPU: there is never more on the device than in training.
    """
    network = unwrap(model)
    weights = {
        key: value.detach().to("cpu", copy=True)
        for key, value in network.state_dict().items()
        if isinstance(value, torch.Tensor) and not value.is_meta and not nn.parameter.is_lazy(value)
    }
    memory = optimizer.state_dict() if optimizer is not None else {}
    try:
        yield
    except BaseException:
        network.load_state_dict(weights, strict=False)
        if optimizer is not None:
            optimizer.load_state_dict(memory)
        raise


def load_weights(model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Load canonical weights. Raises CheckpointError with the first difference when they do not fit.

    A type that cannot hold the values, such as real numbers for complex ones, does not fit; a smaller
    floating-point type does.
    """
    network = unwrap(model)
    living = network.state_dict()
    actual = {canonical(key): key for key in living}
    for key, value in saved.items():
        here = living.get(actual.get(key, key))
        if not isinstance(here, torch.Tensor) or not isinstance(value, torch.Tensor) or is_lazy(here):
            continue
        if here.is_meta:
            raise CheckpointError(f"{key} of the model is on the meta device: call model.to_empty() first.")
        if not torch.can_cast(value.dtype, here.dtype):
            raise CheckpointError(
                f"The checkpoint is of another network: {key} is of {value.dtype} and here of {here.dtype}."
            )
    try:
        network.load_state_dict({actual.get(key, key): value for key, value in saved.items()})
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise CheckpointError(f"The checkpoint is of another network: {(lines[1:] or lines)[0]}") from None


def _restore_schedule(
    saved: dict[str, Any] | None, scheduler: Stateful | None, *, resumed: bool
) -> list[str]:
    if scheduler is not None and saved is not None:
        theirs, ours = _settings(saved), _settings(scheduler.state_dict())
        if theirs != ours:
            log.warning(
                "The checkpoint's schedule (of %s) is another than the %s given (of %s), which starts anew.",
                theirs,
                type(scheduler).__name__,
                ours,
            )
            return ["scheduler_state_dict"]
        optimizer_state.load_schedule(scheduler, saved)
        return []
    if scheduler is not None:
        log.warning(
            "This checkpoint holds no scheduler_state_dict: the learning rate schedule starts anew. "
            "Give scheduler= to save_training_checkpoint."
        )
        return ["scheduler_state_dict"]
    if saved is not None and resumed:
        log.warning("This checkpoint holds a scheduler_state_dict, and no scheduler was given to take it.")
        return ["scheduler_state_dict"]
    return []


def _settings(schedule: Mapping[str, Any]) -> str:
    """Return the names that identify a kind of schedule; those private to torch vary with its version."""
    return ", ".join(sorted(name for name in schedule if not name.startswith("_") and name != "verbose"))


def move(model: nn.Module, device: str | torch.device) -> None:
    """Move a network to a device, in place. Raises CheckpointError when this machine has no such device."""
    try:
        unwrap(model).to(device)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"The model cannot be moved to {device}: {first_line(error)}") from None


NETWORK = "network"
"""Key in a manifest's metadata for the class of its network."""


def class_name(model: nn.Module) -> str:
    """Return the class of a network in snake case, the name of a network that has no other."""
    name = type(unwrap(model)).__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def environment(model: nn.Module) -> dict[str, str]:
    """Return the network's class, the device and torch's version."""
    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    cuda = first is not None and first.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(first.device) if first is not None and cuda else "cpu",
        "pytorch_version": str(torch.__version__),
        NETWORK: class_name(model),
    }


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as floats. Raises CheckpointError naming a metric that is not a number."""
    if not isinstance(metrics, Mapping | None):
        raise CheckpointError(f"metrics is of type {type(metrics).__name__}: give a dict of numbers by name.")
    found = {}
    for name, value in (metrics or {}).items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise CheckpointError(f"The metric {name} is {value!r}: give a number.") from None
    return found


def git_commit() -> str | None:
    """Return the commit of the code in the working directory, None without git or a repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def packed_bytes(weights: Mapping[str, Tensor]) -> int:
    """Return the bytes of a file of these weights alone, from any device, with the zeros packed away."""
    file = _Counter()
    on_cpu = {name: weight.detach().to("cpu") for name, weight in weights.items()}
    serialize.dump(on_cpu, file, compress=True)
    return file.count


class _Counter(io.BytesIO):
    """A file that counts its bytes and keeps none, so that the size of a network takes no memory."""

    count = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.count += size
        return size
