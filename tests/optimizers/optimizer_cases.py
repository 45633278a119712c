"""A small network with every kind of parameter, the optimizers, and training as a function of the step."""

import io

import torch
import torch.nn.functional as F
from torch import nn

from peakpoint.base import registry
from peakpoint.optimizers.parameters import param_groups
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.settings import PruneSettings

torch.set_num_threads(1)

ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "amsgrad": False}
OPTIMIZERS = {
    "adam": ("adam", ADAM),
    "adamw": ("adamw", ADAM),
    "amsgrad": ("adamw", ADAM | {"amsgrad": True}),
    "adamwspam": (
        "adamwspam",
        ADAM | {"amsgrad": True, "spike_threshold": 3.0, "reset_interval": 30, "reset_warmup": 8},
    ),
    "sgd": ("sgd", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
}


def built(name: str, model: nn.Module, decay: float = 0.05, **changes) -> torch.optim.Optimizer:
    """The optimizer of a name in OPTIMIZERS over the parameters of a network."""
    registered, values = OPTIMIZERS[name]
    options = {"weight_decay": decay, "clip_norm": None, **values, **changes}
    return registry.make("optimizer", registered, options).build(param_groups(model, decay))


def network(seed: int = 0, channels_last: bool = False) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(8),  # after the ReLU: a bias before it would get a gradient of pure rounding noise
        nn.Conv2d(8, 12, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    )
    return net.to(memory_format=torch.channels_last) if channels_last else net


def settings(**changes) -> PruneSettings:
    values = {
        "criterion": "magnitude",
        "target": 0.7,
        "start_step": 2,
        "end_step": 21,
        "frequency": 5,
        "schedule": "cubic",
        "allocation": "global",
    }
    return PruneSettings(**(values | changes))


def gradients(net: nn.Module, step: int) -> None:
    """Gradients of the batch that belongs to this step."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(8, 3, 6, 6, generator=generator)
    y = torch.randint(0, 5, (8,), generator=generator)
    if net[0].weight.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Take the steps from `first` to `last`, counted from 1, both included."""
    for step in range(first, last + 1):
        gradients(net, step)
        optimizer.step()


def pruned_run(name: str = "adamw", channels_last: bool = False, decay: float = 0.05, **changes):
    """A network, an optimizer and its pruner."""
    net = network(channels_last=channels_last)
    optimizer = built(name, net, decay)
    return net, optimizer, Pruner(optimizer, settings(**changes))


def zeros(pruner: Pruner) -> int:
    return sum(int((weight == 0).sum()) for weight in pruner.params)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
