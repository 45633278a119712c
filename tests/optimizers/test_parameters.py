"""What can be pruned, what decays, and how many zeros there are, in networks as people build them."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from peakpoint.models import create
from peakpoint.optimizers.parameters import canonical, param_groups, prunable_weights, zeros
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.scope import Scope
from tests.conftest import rows
from tests.optimizers.optimizer_cases import built, network, settings

SETTINGS = settings(target=0.5, start_step=0, end_step=1)


class Everything(nn.Module):
    """A layer of each kind that holds weights."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 8)
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        self.scale = nn.Parameter(torch.ones(8))
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
        self.recur = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.up = nn.ConvTranspose1d(8, 8, 2, 2)
        self.pair = nn.Bilinear(8, 8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        x = self.words(x) + self.position
        x = self.attend(x, x, x)[0] + self.cross(x, x[..., :4], x[..., :4])[0]
        x = self.norm(self.recur(x)[0]) * self.scale
        x = self.up(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.pair(x, x).mean(1))


WEIGHTS = [
    "attend.in_proj_weight", "attend.out_proj.weight",
    "cross.q_proj_weight", "cross.k_proj_weight", "cross.v_proj_weight", "cross.out_proj.weight",
    "recur.weight_ih_l0", "recur.weight_hh_l0", "up.weight", "pair.weight", "out.weight",
]  # fmt: skip


def step(model, optimizer):
    torch.manual_seed(1)
    model(torch.randint(0, 40, (4, 6))).square().sum().backward()
    optimizer.step()


def test_every_layer_that_multiplies_is_pruned_and_counted():
    model = Everything()
    assert sorted(prunable_weights(model)) == sorted(WEIGHTS)
    optimizer = built("adamw", model)
    Pruner(optimizer, SETTINGS)
    step(model, optimizer)
    found = zeros(model)
    gone = sum(int((p == 0).sum()) for p in prunable_weights(model).values())
    count = sum(p.numel() for p in prunable_weights(model).values())
    everything = list(model.parameters())
    assert (found.prunable, found.prunable_count) == (gone / count, count)
    assert found.prunable == pytest.approx(0.5, abs=1e-3)
    total = sum(p.numel() for p in everything)
    assert found.overall == sum(int((p == 0).sum()) for p in everything) / total
    assert found.overall_count == total


@pytest.mark.parametrize("embeddings", [False, True])
def test_embeddings_are_pruned_by_choice_and_decay_all_the_same(embeddings):
    model = Everything()
    groups = param_groups(model, 0.1, Scope(embeddings=embeddings))
    names = {name: g["weight_decay"] for g in groups for name in g["param_names"]}
    assert ("words.weight" in groups[0]["param_names"]) == embeddings
    assert names["words.weight"] == names["position"] == names["attend.in_proj_weight"] == 0.1
    no_decay = {name for name, decay in names.items() if decay == 0}
    assert no_decay == {name for name, p in model.named_parameters() if p.dim() == 1}
    assert len(names) == len(list(model.parameters()))
    prunable = zeros(model, Scope(embeddings=embeddings)).prunable_count
    assert prunable == sum(p.numel() for p in groups[0]["params"])


@pytest.mark.parametrize("first", ["words", "out"])
def test_an_embedding_that_is_an_output_layer_too_is_an_embedding(first):
    layers = {"words": nn.Embedding(10, 4), "out": nn.Linear(4, 10, bias=False)}
    layers["out"].weight = layers["words"].weight
    model = nn.ModuleDict({name: layers[name] for name in sorted(layers, key=lambda name: name != first)})
    assert list(prunable_weights(model)) == []
    assert list(prunable_weights(model, Scope(embeddings=True))) == [f"{first}.weight"]
    assert zeros(model).prunable_count == 0
    groups = param_groups(model, 0.1)
    assert [p for g in groups for p in g["param_names"]] == [f"{first}.weight"]


def test_frozen_weights_are_never_pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight.mul_(1e-6)  # the lowest of all: what is pruned first
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = built("adamw", model)
    pruner = Pruner(optimizer, SETTINGS)
    model(torch.randn(8, 16)).square().sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert [p is model[2].weight for p in pruner.params] == [True]
    found = zeros(model)
    assert (found.prunable, found.prunable_count) == (0.5, 64)
    assert found.overall == 32 / (256 + 16 + 64 + 4)
    model.requires_grad_(False)  # a network that only serves
    assert zeros(model).prunable == 32 / 320


def test_a_network_pruned_by_torch_is_measured_at_its_real_sparsity():
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Conv1d(4, 4, 5))
    prune.l1_unstructured(model[0], "weight", amount=0.9)
    prune.random_unstructured(model[2], "weight", amount=0.5)
    found = zeros(model)
    assert found.prunable == (360 + 40) / 480
    assert found.overall_count == 400 + 20 + 80 + 4
    assert found.overall == 400 / 504
    assert list(prunable_weights(model)) == []  # the mask is torch's: another would fight it
    with torch.no_grad():
        model[0].weight_orig.zero_()
    assert zeros(model).prunable == (400 + 40) / 480
    for layer in (model[0], model[2]):
        prune.remove(layer, "weight")
    assert zeros(model).prunable == (400 + 40) / 480
    assert list(prunable_weights(model)) == ["0.weight", "2.weight"]


class Half(nn.Module):
    """Zeroes every second column."""

    def forward(self, weight):
        mask = torch.ones_like(weight)
        mask[:, ::2] = 0
        return weight * mask


def test_a_parametrized_weight_is_what_its_layer_uses():
    model = nn.Sequential(nn.Linear(10, 6), nn.Linear(6, 4, bias=False))
    parametrize.register_parametrization(model[0], "weight", Half())
    found = zeros(model)
    assert (found.prunable, found.prunable_count) == (30 / 84, 84)
    assert (found.overall, found.overall_count) == (30 / 90, 90)
    names = {n: g["weight_decay"] for g in param_groups(model, 0.1) for n in g["param_names"]}
    assert names == {"1.weight": 0.1, "0.bias": 0.0, "0.parametrizations.weight.original": 0.1}


def test_measuring_changes_nothing():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    parametrizations.spectral_norm(model[0])
    parametrizations.weight_norm(model[1])
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    model.train()
    assert zeros(model).prunable_count == 72
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_counts_as_a_zero():
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, -0.0], [1e-40, torch.nan]]))
    assert zeros(layer).prunable == zeros(layer).overall == 0.5
    assert zeros(nn.ReLU()).prunable == zeros(nn.ReLU()).overall == 0.0


@pytest.mark.parametrize(
    ("name", "prunable", "rest"), [("resnet20", 20, 39), ("lenet5", 5, 5), ("resnet50", 54, 107)]
)
def test_the_order_of_the_trainers_networks_is_that_of_checkpoints_already_written(name, prunable, rest):
    options = {"dropout": 0.0} | ({} if name == "lenet5" else {"stem": "auto"})
    model = create(name, image_shape=(3, 32, 32), num_classes=10, options=options)
    groups = param_groups(model, 5e-4)
    assert [len(g["params"]) for g in groups] == [prunable, rest]
    order = [n for n, _ in model.named_parameters()]
    assert groups[0]["param_names"] == [n for n in order if dict(model.named_parameters())[n].dim() > 1]
    assert groups[1]["param_names"] == [n for n in order if n not in groups[0]["param_names"]]


def test_a_run_says_how_much_of_all_parameters_is_pruned(train, tmp_path):
    base = """model=lenet5 data=synthetic data.train_size=144 data.test_size=40 data.num_classes=4
        data.native_size=12 epochs=1 batch_size=16 logger=[console] report=false threads=1 device=cpu"""
    done = train(
        *base.split(), "pruning.target=0.5", "pruning.end_fraction=0.5", "hydra.run.dir=run"
    ).succeeded()
    assert re.search(r"^network +lenet5: [\d,]+ parameters, 9\d\.\d\d% of them prunable; ", done.out, re.M)
    (row,) = rows(tmp_path / "run", "eval")
    assert row["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert 0.4 < row["sparsity_of_all"] < row["sparsity"]
    assert f"sparsity 50.00% ({row['sparsity_of_all']:.2%} of all parameters)" in done.out
    last = f"50.00% of the prunable weights, {row['sparsity_of_all']:.2%} of all parameters."
    assert f"Zeros at the end: {last}" in done.out


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_normalised_before_each_call_counts_as_one_and_is_left_alone(norm):
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    assert list(prunable_weights(model)) == ["1.weight"]
    assert zeros(model).prunable_count == 80
    with torch.no_grad():
        (getattr(model[0], "weight_v", None) if norm is nn.utils.weight_norm else model[0].weight_orig)[
            0, :4
        ] = 0
    assert zeros(model).prunable == 4 / 80


def test_parameters_that_are_named_like_those_of_prune_are_taken_as_they_are():
    layer = nn.Linear(4, 4)
    layer.scale_orig, layer.scale_mask = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(3, 3))
    layer.shift_orig = nn.Parameter(torch.ones(4))
    layer.register_buffer("shift_mask", torch.zeros(3, 3))
    assert zeros(layer).overall_count == 16 + 4 + 4 + 9 + 4


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
    optimizer = built("adamw", network())
    other = built("adamw", network(1))
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["param_names"][0] == "0.weight"
    assert other.param_groups[0]["prunable"] is True
