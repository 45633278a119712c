"""What the parameters of a network are: which can be pruned, which decay, and how many are zero.

A parameter is looked at as its layer uses it. torch.nn.utils.prune keeps a weight as `weight_orig` and a
mask, and torch.nn.utils.parametrize as what a function makes the weight of: neither is a parameter named
`weight`, and the zeros are those of the product.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from peakpoint.optimizers.scope import EVERYTHING, Scope

_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_INPUTS_SECOND = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
"""Layers whose weights have the input channels in dimension 1."""
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Used:
    """A parameter as its layer uses it, by the canonical `name` that it has there.

    `value` is the parameter itself, or what is made of others, `sources`, whose names and values are not
    its own. `kind` is weight, embedding or other; `inputs_second` says that dimension 1 has the input
    channels of a layer.
    """

    name: str
    value: Tensor
    kind: str
    sources: tuple[Tensor, ...]
    inputs_second: bool

    @property
    def trainable(self) -> bool:
        """Return whether training changes it."""
        return any(source.requires_grad for source in self.sources)

    @property
    def own(self) -> bool:
        """Return whether the layer uses a parameter as it is."""
        return self.sources[0] is self.value


@dataclass(frozen=True)
class Zeros:
    """How many zeros there are among the prunable weights and among all parameters.

    `layers` has the share of zeros of each prunable weight by its canonical name, in the network's order.
    """

    prunable: float
    prunable_count: int
    overall: float
    overall_count: int
    layers: dict[str, float]


def used(model: nn.Module) -> list[Used]:
    """Return every parameter of a network once, in its order.

    What two layers share is of the first kind other than weight, so that an embedding that is an output layer
    too is an embedding.
    """
    found: dict[tuple[int, ...], Used] = {}
    for one in (each for path, module in model.named_modules() for each in _of(path, module)):
        key = tuple(map(id, one.sources))
        if key not in found or (found[key].kind == "weight" != one.kind):
            found[key] = one
    return list(found.values())


def _of(path: str, module: nn.Module) -> Iterator[Used]:
    if isinstance(module, parametrize.ParametrizationList):
        return  # its parameters are the sources of the layer that holds it
    path = f"{path}." if path else ""
    second = isinstance(module, _INPUTS_SECOND)
    buffers = dict(module.named_buffers(recurse=False))
    for name, value in module.named_parameters(recurse=False):
        plain = name.removesuffix("_orig")
        mask = buffers.get(f"{plain}_mask") if plain != name else None
        hooked = _made_before_each_call(module, name)
        if mask is not None and mask.shape == value.shape:
            yield Used(canonical(path + plain), value.detach() * mask, _kind(module, plain), (value,), second)
        elif hooked is not None:
            yield Used(canonical(path + hooked), value.detach(), _kind(module, hooked), (value,), second)
        else:
            yield Used(canonical(path + name), value, _kind(module, name), (value,), second)
    if parametrize.is_parametrized(module):
        made = module.parametrizations
        assert isinstance(made, nn.ModuleDict)
        for name, parametrization in made.items():
            with torch.no_grad():
                # A copy: in training a spectral norm changes by being looked at.
                value = copy.deepcopy(parametrization).eval()()
            sources = tuple(parametrization.parameters())
            yield Used(canonical(path + name), value, _kind(module, name), sources, second)


def _made_before_each_call(module: nn.Module, name: str) -> str | None:
    """Return the name of the weight that torch.nn.utils.weight_norm or spectral_norm makes of a parameter.

    Its zeros are those of the parameter.
    """
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm) and name in (f"{hook.name}_v", f"{hook.name}_orig"):
            return hook.name
    return None


def _kind(module: nn.Module, name: str) -> str:
    if isinstance(module, _EMBEDDINGS) and name == "weight":
        return "embedding"
    layer = isinstance(module, _LAYERS) and name == "weight"
    attention = isinstance(module, nn.MultiheadAttention) and name in _ATTENTION
    recurrent = isinstance(module, _RECURRENT) and name.startswith("weight_")
    return "weight" if layer or attention or recurrent else "other"


def _in_scope(one: Used, scope: Scope) -> bool:
    kind = one.kind == "weight" or (scope.embeddings and one.kind == "embedding")
    grouped = scope.pattern is None or (one.inputs_second and scope.pattern.fits(tuple(one.value.shape)))
    return kind and grouped and not scope.excludes(one.name)


def zeros(model: nn.Module, scope: Scope = EVERYTHING) -> Zeros:
    """Count the zeros of a network among its prunable weights and among all parameters.

    What is frozen is not prunable, unless the whole network is: one that only serves has all its weights.
    """
    found = used(model)
    frozen = not any(one.trainable for one in found)
    return count(found, [(frozen or one.trainable) and _in_scope(one, scope) for one in found])


def count(found: list[Used], chosen: list[bool]) -> Zeros:
    """Count the zeros (-0.0 is one, NaN is not) of the chosen and of all. Waits for the device once."""
    sizes = [one.value.numel() for one in found]
    kept = [one.value.detach().count_nonzero() for one in found]
    counts = torch.stack([each.to(kept[0].device) for each in kept]).tolist() if kept else []
    gone = [size - nonzero for size, nonzero in zip(sizes, counts, strict=True)]
    of_chosen = sum(size for size, take in zip(sizes, chosen, strict=True) if take)
    gone_chosen = sum(zero for zero, take in zip(gone, chosen, strict=True) if take)
    return Zeros(
        gone_chosen / of_chosen if of_chosen else 0.0,
        of_chosen,
        sum(gone) / sum(sizes) if found else 0.0,
        sum(sizes),
        {
            one.name: zero / size
            for one, zero, size, take in zip(found, gone, sizes, chosen, strict=True)
            if take and size
        },
    )


def canonical(name: str) -> str:
    """Return a parameter's name without what torch.compile and DistributedDataParallel put before it."""
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    while parts[0] == "module" and len(parts) > 1:
        del parts[0]
    return ".".join(parts)


def prunable_weights(model: nn.Module, scope: Scope = EVERYTHING) -> dict[str, nn.Parameter]:
    """Return the prunable weights, by canonical name, in the model's order.

    Those of linear, convolution, transposed convolution, recurrent and attention layers that are trained and
    in scope. Biases and normalisation are never pruned, nor what is frozen, nor a weight that
    torch.nn.utils.prune or parametrize makes of others. A weight shared by two layers is listed once.
    Raises ValueError for a scope that excludes what is not there.
    """
    found = [one for one in used(model) if one.own and one.trainable]
    scope.check(one.name for one in found if _in_scope(one, replace(scope, exclude=())))
    chosen = {id(one.value) for one in found if _in_scope(one, scope)}
    return {canonical(name): param for name, param in model.named_parameters() if id(param) in chosen}


def param_groups(model: nn.Module, weight_decay: float, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
    """Return groups: prunable weights, what does not decay, and other matrices where there are any.

    Decay follows the kind of parameter, prunable or not: matrices and kernels decay; biases, normalisation
    and whatever has one dimension do not. Each group has `prunable` and `param_names` (canonical) beside
    `params` and `weight_decay`. Raises ValueError as `prunable_weights` does.
    """
    weights = prunable_weights(model, scope)
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
