"""Where batch normalisation has nothing to normalise over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def single_value(model: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
    """The name of the first BatchNorm that one image of (C, H, W) gives one value a channel, or None.

    Training on one image at a time fails there. Passes an image of zeros through the network, as evaluation
    does, so that neither its statistics nor random numbers change.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    found: list[str] = []

    def note(name: str, inputs: tuple[Any, ...]) -> None:
        values = inputs[0]
        if values.numel() == values.shape[1]:
            found.append(name)

    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        return None
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs))
        for name, layer in layers.items()
    ]
    training, device = model.training, next(model.parameters()).device
    try:
        with torch.no_grad():
            model.eval()(torch.zeros((1, *image_shape), device=device))
    except ValueError:  # what keeps no running statistics fails in evaluation too
        if not found:
            raise
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
