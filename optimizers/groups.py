"""Which parameters decay, and which can be pruned."""

from typing import Any

from torch import nn

_PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def canonical(name: str) -> str:
    """A parameter's name without what torch.compile and DistributedDataParallel put before it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return ".".join(parts)


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of every convolution and linear layer by canonical name, in the model's order.

    Biases and normalisation are never pruned. A weight shared by two layers is listed once.
    """
    chosen = {id(module.weight) for module in model.modules() if isinstance(module, _PRUNABLE)}
    return {canonical(name): param for name, param in model.named_parameters() if id(param) in chosen}


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: prunable weights, which decay, and all the rest, which do not.

    Each has `prunable` and `param_names` (canonical) beside `params` and `weight_decay`.
    """
    weights = prunable_weights(model)
    chosen = {id(weight) for weight in weights.values()}
    rest = {canonical(n): p for n, p in model.named_parameters() if id(p) not in chosen}
    return [
        _group(weights, weight_decay=weight_decay, prunable=True),
        _group(rest, weight_decay=0.0, prunable=False),
    ]


def _group(named: dict[str, nn.Parameter], *, weight_decay: float, prunable: bool) -> dict[str, Any]:
    return {
        "params": list(named.values()),
        "param_names": list(named),
        "weight_decay": weight_decay,
        "prunable": prunable,
    }
