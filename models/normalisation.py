"""Where batch normalisation has nothing to normalise over."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def single_value(model: nn.Module, image_shape: tuple[int, int, int]) -> str | None:
    """The name of the first BatchNorm that one image of (C, H, W) gives one value a channel, or None.

    Training on one image at a time fails there. Passes an image of zeros through the network, as evaluation
    does, so that neither its statistics nor random numbers change.
    """
    layers: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        return None
    found: list[str] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].numel() == inputs[0].shape[1]:
            found.append(layers[layer])

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
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
