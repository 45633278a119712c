"""Golden inputs and outputs of a network that does not take images: the inputs are the user's example.

A tensor is its one argument, a tuple or a list its arguments in order, a mapping its arguments by name. The
golden file of the release holds them beside every tensor of the output.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from peakpoint.base.errors import CheckpointError, first_line

INPUT, OUTPUT = "example", "output"
TOLERANCE = 1e-3
"""Largest error in float32, as a fraction of an output's largest value; integers must be equal."""


def golden_file(network: nn.Module, inputs: Any) -> bytes:
    """Return the golden file of a network for its user's inputs; its mode, weights and generators are kept.

    Raises CheckpointError for inputs that it does not accept, and for outputs that are not tensors, not
    finite or different at every call.
    """
    given = _given(inputs)
    with _evaluating(network):
        first, second = run(network, given), run(network, given)
    for name, value in first.items():
        if not bool(value.isfinite().all()):
            raise CheckpointError(
                f"For example_inputs the network's {name} is NaN or infinite: give others, or leave them out."
            )
    if (wrong := _difference(second, first)) is not None:
        raise CheckpointError(
            f"In evaluation mode the network's outputs differ from call to call ({wrong}): leave "
            "example_inputs out, as nothing can be compared with them."
        )
    written: bytes = save({name: _stored(value) for name, value in (given | first).items()})
    return written


def are(content: Mapping[str, Tensor]) -> bool:
    """Return whether a golden file holds a user's inputs."""
    return any(_is(name, INPUT) for name in content)


def check(network: nn.Module, content: Mapping[str, Tensor]) -> None:
    """Run a network, in evaluation mode, on its golden inputs. Raises CheckpointError for other outputs."""
    found = run(network, {name: value for name, value in content.items() if _is(name, INPUT)})
    golden = {name: value for name, value in content.items() if _is(name, OUTPUT)}
    if (wrong := _difference(found, golden)) is not None:
        raise CheckpointError(f"The network is not the one that was released: {wrong}.")


@torch.no_grad()
def run(network: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every tensor of the output on the CPU, by its path in the output. Raises CheckpointError."""
    first = next(iter(network.parameters()), None)
    device = first.device if first is not None else torch.device("cpu")
    moved = {name.removeprefix(INPUT).removeprefix("."): value.to(device) for name, value in given.items()}
    by_name = {name: value for name, value in moved.items() if name and not name.isdigit()}
    in_order = [moved[name] for name in sorted(moved.keys() - by_name, key=lambda name: int(name or 0))]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(0)  # for a network that draws even in evaluation mode
            output = network(*in_order, **by_name)
    except Exception as error:  # the network is the user's: it may raise anything
        raise CheckpointError(
            f"The network cannot be run on its example inputs: {first_line(error)}"
        ) from None
    found = {name: value.detach().to("cpu") for name, value in _tensors(output, OUTPUT)}
    if not found:
        raise CheckpointError(f"The network's output, a {type(output).__name__}, holds no tensor to compare.")
    return found


def _given(inputs: Any) -> dict[str, Tensor]:
    found: Any
    if isinstance(inputs, Tensor):
        found = {INPUT: inputs}
    elif isinstance(inputs, Mapping):
        found = {f"{INPUT}.{name}": value for name, value in inputs.items()}
        if not all(isinstance(name, str) and name.isidentifier() for name in inputs):
            raise CheckpointError(
                "example_inputs: the names of a mapping are those of the network's arguments."
            )
    else:
        given = inputs if isinstance(inputs, list | tuple) else ()
        found = {f"{INPUT}.{number}": value for number, value in enumerate(given)}
    if not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(
            "example_inputs must be what the network is called with: a tensor, a tuple of tensors, or a "
            "mapping of its arguments' names to tensors."
        )
    return {name: value.detach().to("cpu") for name, value in found.items()}


def _tensors(value: Any, place: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, child in pairs:
            yield from _tensors(child, f"{place}.{key}")


def _difference(found: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> str | None:
    """Return a sentence on the first output that differs from the golden one, or None."""
    for name in [*golden, *(found.keys() - golden.keys())]:
        if name not in found or name not in golden or found[name].shape != golden[name].shape:
            return f"{name} is {_shape(found, name)}, and was {_shape(golden, name)}"
        expected = golden[name]
        allowed = 0.0
        if expected.is_floating_point() and expected.numel():
            allowed = max(TOLERANCE, 8 * torch.finfo(expected.dtype).eps) * float(expected.abs().max())
        distance = (found[name].to(torch.float64) - expected.to(torch.float64)).abs()
        largest = float(distance.nan_to_num(nan=torch.inf).max()) if distance.numel() else 0.0
        if not largest <= allowed:
            return f"{name} is off by {largest:.3g}, and {allowed:.3g} is allowed"
    return None


def _shape(outputs: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(outputs[name].shape)) if name in outputs else "missing"


def _is(name: str, kind: str) -> bool:
    return name == kind or name.startswith(f"{kind}.")


def _stored(value: Tensor) -> Tensor:
    """Return the tensor contiguous, with memory of its own."""
    return value.contiguous().clone()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, and afterwards back to the mode of each module."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
