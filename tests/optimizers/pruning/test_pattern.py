"""N:M sparsity, each group looked at."""

import pytest
import torch

from peakpoint.optimizers.parameters import param_groups, prunable_weights, zeros
from peakpoint.optimizers.pruning.pattern import Pattern, parsed
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.scope import Scope
from tests.optimizers.optimizer_cases import network, settings, train


def groups(weight: torch.Tensor, size: int) -> list[list[float]]:
    """Every group of a weight, by indices."""
    rest = weight[0, 0].numel() if weight.dim() > 2 else 1
    flat = weight.detach().reshape(weight.shape[0], weight.shape[1], rest)
    return [
        flat[out, first : first + size, place].tolist()
        for out in range(flat.shape[0])
        for first in range(0, flat.shape[1], size)
        for place in range(rest)
    ]


def patterned(text: str, **changes):
    pattern = parsed(text)
    net = network()
    scope = Scope(pattern=pattern)
    optimizer = torch.optim.AdamW(param_groups(net, 0.05, scope), lr=1e-2)
    pruner = Pruner(optimizer, settings(target=pattern.target, pattern=text, **changes))
    return net, optimizer, pruner, scope


@pytest.mark.parametrize(("kept", "size"), [(2, 4), (1, 4), (4, 8), (1, 2)])
@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
def test_every_group_keeps_its_n_highest(kept, size, allocation):
    text = f"{kept}:{size}"
    net, optimizer, pruner, scope = patterned(text, allocation=allocation, schedule="linear")
    train(net, optimizer, 1, 12)
    zeros_of = [sum(value == 0 for value in group) for w in pruner.params for group in groups(w, size)]
    assert max(zeros_of) == size - kept > min(zeros_of)
    train(net, optimizer, 13, 21)
    fitting = [name for name, w in prunable_weights(net).items() if w.shape[1] % size == 0]
    assert list(prunable_weights(net, scope)) == fitting
    for weight in pruner.params:
        assert {sum(value != 0 for value in group) for group in groups(weight, size)} == {kept}
        assert parsed(text).holds(weight)
        assert not parsed(text).holds(torch.ones_like(weight))
    found = zeros(net, scope)
    assert found.prunable == 1 - kept / size
    assert found.overall < found.prunable
    assert pruner.mask_version > 1


def test_the_lowest_of_a_group_go_and_equal_ones_by_place():
    keys = torch.tensor([[[3]], [[1]], [[2]], [[4]], [[5]], [[5]], [[5]], [[5]]]).view(1, 8, 1, 1)
    lowest = Pattern(2, 4).prunable(keys.int()).view(-1).tolist()
    assert lowest == [False, True, True, False, True, True, False, False]


def test_a_layer_whose_inputs_do_not_divide_stays_dense():
    net, optimizer, *_ = patterned("2:4")
    train(net, optimizer, 1, 30)
    assert (net[0].weight != 0).all()  # three input channels
    assert (net[8].weight != 0).all()  # six


def test_weights_that_were_pruned_without_the_pattern_stay_pruned_under_it():
    net = network()
    scope = Scope(pattern=parsed("2:4"))
    optimizer = torch.optim.AdamW(param_groups(net, 0.05, scope), lr=1e-2)
    Pruner(optimizer, settings(target=0.4))
    train(net, optimizer, 1, 30)
    gone = [weight == 0 for weight in prunable_weights(net, scope).values()]
    again = torch.optim.AdamW(param_groups(net, 0.05, scope), lr=1e-2)
    pruner = Pruner(
        again, settings(target=0.5, pattern="2:4", begin=30, start_step=31, end_step=40, initial=0.4)
    )
    again.load_state_dict(optimizer.state_dict())
    train(net, again, 31, 40)
    for weight, before in zip(pruner.params, gone, strict=True):
        assert (weight[before] == 0).all()
    for weight in pruner.params:
        assert max(sum(value != 0 for value in group) for group in groups(weight, 4)) >= 2
    assert sum(int((w == 0).sum()) for w in pruner.params) >= sum(w.numel() for w in pruner.params) / 2


@pytest.mark.parametrize("text", ["", "4", "4:2", "0:4", "2:2", "2:64", "2:4:8", "-2:4", "a:b"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(ValueError, match=r"pruning\.pattern=.* is no pattern: give N:M"):
        parsed(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.6}, r"prunes 0\.5, less than the target 0\.6"),
        ({"target": 0.5, "regrow": "random"}, "leaves no place to regrow"),
        ({"target": 0.5, "min_density": 0.1}, "leave min_density out"),
    ],
)
def test_what_does_not_go_with_a_pattern_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(pattern="2:4", **changes)
