"""The multiply-accumulate operations (MACs) of a network, counted without data."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def macs(build: Callable[[], "nn.Module"], image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the MACs for one image (channels, height, width), by weight, and under "" those of no weight.

    `build` returns the network, which is made and called on the meta device: it takes neither memory nor
    random numbers. torch counts those of convolutions and matrix products. Raises whatever a network raises
    that needs values.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = build().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, *image_shape, device="meta"))
    of_modules = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    root = type(network).__name__
    found = {
        f"{path}.weight": of_modules[f"{root}.{path}"]
        for path, module in network.named_modules()
        if f"{root}.{path}" in of_modules and not any(module.children()) and hasattr(module, "weight")
    }
    return {**found, "": of_modules["Global"] - sum(found.values())}
