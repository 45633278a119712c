"""Averages of networks: of the weights of several, and of the logits that stand for their probabilities."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from peakpoint.deployment.inference.weights import masked


def mean_weights(networks: Sequence[Mapping[str, Tensor]], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mean of each floating-point tensor, summed in float64; the others are the first network's.

    A weight is zero where its mask is False.
    """
    found = {}
    for name, first in networks[0].items():
        mean = first
        if first.is_floating_point():
            mean = sum((each[name].double() for each in networks[1:]), first.double()) / len(networks)
        found[name] = mean.to(first.dtype)
    return found | {name: masked(found[name], mask) for name, mask in masks.items()}


def recalibrate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], autocast: AbstractContextManager
) -> None:
    """Replace the statistics of batch normalisation by their mean over these training batches.

    Those of averaged weights are not the average of statistics: Izmailov et al. 2018 (arXiv:1803.05407). A
    network without such statistics is left as it is, and no batch is read. It ends in evaluation mode.
    """
    with torch.random.fork_rng(), autocast:
        torch.manual_seed(0)  # of dropout, which is at work in a pass of training
        swa_utils.update_bn(batches, network)
    network.eval()


def mean_of_probabilities(logits: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the networks' probabilities, each of logits (images, classes).

    These are logits as well: their softmax is that mean. NaN where a network's logits have one.
    """
    each = torch.stack([one.log_softmax(dim=1) for one in logits])
    return each.logsumexp(dim=0) - math.log(len(logits))
