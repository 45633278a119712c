"""A small network with every kind of parameter, the optimizers, and training as a function of the step."""

import io

import torch
import torch.nn.functional as F
from torch import nn

from peakpoint.optimizers.adam import build_adam
from peakpoint.optimizers.adamw import build_adamw
from peakpoint.optimizers.adamwprune import AdamWPrune
from peakpoint.optimizers.adamwspam import AdamWSPAM, SpamSettings
from peakpoint.optimizers.groups import param_groups
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.settings import PruneSettings
from peakpoint.optimizers.sgd import build_sgd

torch.set_num_threads(1)

ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8}
SPAM = SpamSettings(threshold=3.0, interval=30, warmup=8)

BUILDERS = {
    "adam": lambda groups: build_adam(groups, **ADAM, amsgrad=False),
    "adamw": lambda groups: build_adamw(groups, **ADAM, amsgrad=False),
    "amsgrad": lambda groups: build_adamw(groups, **ADAM, amsgrad=True),
    "adamwspam": lambda groups: AdamWSPAM(groups, spam=SPAM, **ADAM, amsgrad=True),
    "sgd": lambda groups: build_sgd(groups, lr=0.05, momentum=0.9, nesterov=True),
}


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
    groups = param_groups(net, decay)
    if name == "adamwprune":
        optimizer = AdamWPrune(groups, settings=settings(**changes), **ADAM, amsgrad=False)
        return net, optimizer, optimizer.pruner
    optimizer = BUILDERS[name](groups)
    return net, optimizer, Pruner(optimizer, settings(**changes))


def zeros(pruner: Pruner) -> int:
    return sum(int((weight == 0).sum()) for weight in pruner.params)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)
