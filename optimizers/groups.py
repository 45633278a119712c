"""Which parameters decay, and which can be pruned."""

from typing import Any

from torch import Tensor, nn

from peakpoint.optimizers.kinds import is_weight, used


def canonical(name: str) -> str:
    """A parameter's name without what torch.compile and DistributedDataParallel put before it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return ".".join(parts)


def prunable_weights(model: nn.Module, *, embeddings: bool = False) -> dict[str, nn.Parameter]:
    """The weights that pruning may take of, by canonical name, in the model's order.

    Those of linear, convolution, transposed convolution, recurrent and attention layers that are trained;
    with `embeddings` those too. Biases and normalisation are never pruned, nor what is frozen, nor a weight
    that torch.nn.utils.prune or parametrize makes of others. A weight shared by two layers is listed once.
    """
    found = (one for one in used(model) if is_weight(one, embeddings=embeddings))
    chosen = {id(one.value) for one in found if one.own and one.trainable}
    return {canonical(name): param for name, param in model.named_parameters() if id(param) in chosen}


def param_groups(model: nn.Module, weight_decay: float, *, embeddings: bool = False) -> list[dict[str, Any]]:
    """Groups for an optimizer: prunable weights, what does not decay, and other matrices where there are any.

    Decay follows the kind of parameter, prunable or not: matrices and kernels decay; biases, normalisation
    and whatever has one dimension do not. Each group has `prunable` and `param_names` (canonical) beside
    `params` and `weight_decay`.
    """
    weights = prunable_weights(model, embeddings=embeddings)
    chosen = {id(weight) for weight in weights.values()}
    rest = {canonical(n): p for n, p in model.named_parameters() if id(p) not in chosen}
    plain = {name: param for name, param in rest.items() if not _decays(param)}
    others = {name: param for name, param in rest.items() if _decays(param)}
    groups = [
        _group(weights, weight_decay=weight_decay, prunable=True),
        _group(plain, weight_decay=0.0, prunable=False),
    ]
    return [*groups, _group(others, weight_decay=weight_decay, prunable=False)] if others else groups


def _decays(param: Tensor) -> bool:
    return param.dim() > 1


def _group(named: dict[str, nn.Parameter], *, weight_decay: float, prunable: bool) -> dict[str, Any]:
    return {
        "params": list(named.values()),
        "param_names": list(named),
        "weight_decay": weight_decay,
        "prunable": prunable,
    }
