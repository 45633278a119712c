from torch import nn

from peakpoint.optimizers.adamw import build_adamw
from peakpoint.optimizers.groups import canonical, param_groups, prunable_weights
from tests.optimizers.optimizer_cases import ADAM, network


def test_only_weights_of_convolutions_and_linear_layers_decay():
    net = network()
    decays, rest = param_groups(net, 0.05)
    assert decays["param_names"] == ["0.weight", "3.weight", "5.weight", "8.weight"]
    assert (decays["weight_decay"], decays["prunable"]) == (0.05, True)
    assert rest["param_names"] == ["0.bias", "2.weight", "2.bias", "5.bias", "8.bias"]
    assert (rest["weight_decay"], rest["prunable"]) == (0.0, False)
    assert decays["params"][1] is net[3].weight


def test_names_are_canonical():
    assert canonical("module._orig_mod.layer1.0.weight") == "layer1.0.weight"
    assert canonical("_orig_mod.block._orig_mod.weight") == "block.weight"
    wrapped = nn.Module()
    wrapped.module = network()
    assert list(prunable_weights(wrapped)) == list(prunable_weights(network()))


def test_a_shared_weight_is_listed_once():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    assert list(prunable_weights(net)) == ["0.weight"]


def test_names_survive_the_optimizers_state_dict():
    optimizer = build_adamw(param_groups(network(), 0.05), **ADAM, amsgrad=False)
    other = build_adamw(param_groups(network(1), 0.05), **ADAM, amsgrad=False)
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["param_names"][0] == "0.weight"
    assert other.param_groups[0]["prunable"] is True
