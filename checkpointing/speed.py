"""How long a network takes, and what its weights alone would fill."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from checkpointing import sparse


@dataclass(frozen=True)
class Latency:
    """The median of `n` forward passes over `batch` images, in milliseconds, and the fastest of them."""

    ms: float
    fastest_ms: float
    n: int
    batch: int


@torch.inference_mode()
def latency(
    network: nn.Module, image_shape: tuple[int, int, int], *, batch: int, repeats: int, warmup: int
) -> Latency:
    """Time a network in evaluation mode on the device that it lies on, with random images on that device."""
    device = next(network.parameters()).device
    images = torch.rand((batch, *image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    times = []
    for number in range(warmup + repeats):
        _wait(device)
        start = time.perf_counter()
        network(images)
        _wait(device)
        if number >= warmup:
            times.append(1000 * (time.perf_counter() - start))
    return Latency(median(times), min(times), repeats, batch)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def weights_bytes(network: nn.Module) -> int:
    """The bytes of a network's weights and buffers, with the zeros packed away as a checkpoint packs them."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    seen: dict[int, int] = {}

    def walk(value: Any) -> None:
        if isinstance(value, Tensor):
            seen[id(value)] = value.nbytes
        elif isinstance(value, dict | list | tuple):
            for child in value.values() if isinstance(value, dict) else value:
                walk(child)

    packed = sparse.pack(state)  # held, so that no two tensors have the same id
    walk(packed)
    return sum(seen.values())
