"""Weights of a release: pruned ones are zero, the type is the one asked for, nothing else changes."""

import pytest
import torch

from peakpoint import CheckpointError
from peakpoint.checkpointing.state import serialize
from peakpoint.deployment.inference import network, weights
from peakpoint.deployment.inference.form import KEPT


@pytest.fixture
def saved(pruned_run):
    """Return the contents of the checkpoint that is the best at 0.7, and its file."""
    root, manifest = network.resolve(pruned_run)
    return serialize.load(root / manifest.file), root / manifest.file


def masks(saved):
    """Return the bool mask of each pruned weight, by the pruner's own reading."""
    from peakpoint.optimizers.pruning.masks import unpack

    optimizer = saved["optimizer_state_dict"]
    (group,) = [g for g in optimizer["param_groups"] if g["prunable"]]
    found = zip(group["param_names"], optimizer["pruning"]["masks"], strict=True)
    return {name: unpack(bits, saved["model_state_dict"][name]) for name, bits in found}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_sound_checkpoint_is_released_as_it_is_whatever_its_strides(saved, layout, caplog):
    state, file = saved
    state["model_state_dict"] = {
        name: value.to(memory_format=layout) if value.dim() == 4 else value
        for name, value in state["model_state_dict"].items()
    }
    found = weights.of_checkpoint(state, file)
    assert all(torch.equal(found[name], value) for name, value in state["model_state_dict"].items())
    assert caplog.text == ""


def test_every_masked_weight_is_plus_zero_and_no_other_changes(saved, caplog):
    state, file = saved
    before = {name: value.clone() for name, value in state["model_state_dict"].items()}
    kept = masks(state)
    assert 0.6 < 1 - sum(m.sum().item() for m in kept.values()) / sum(m.numel() for m in kept.values()) < 0.8
    for name, mask in kept.items():
        state["model_state_dict"][name][~mask] = -1.0  # as by a loop that trained on without its masks
    found = weights.of_checkpoint(state, file)
    for name, mask in kept.items():
        bits = found[name][~mask].view(torch.int32)
        assert bits.numel()
        assert not bits.any()
        assert torch.equal(found[name][mask], before[name][mask])
    assert all(torch.equal(found[name], before[name]) for name in before.keys() - kept.keys())
    assert "pruned weights of conv1.weight were not zero" in caplog.text


@pytest.mark.parametrize("harm", ["fewer", "short", "names"])
def test_masks_of_another_network_are_refused(saved, harm):
    state, file = saved
    pruning = state["optimizer_state_dict"]["pruning"]
    if harm == "fewer":
        pruning["masks"] = pruning["masks"][1:]
    elif harm == "short":
        pruning["masks"][0] = pruning["masks"][0][1:]
    else:
        state["model_state_dict"].pop("conv1.weight")
    with pytest.raises(CheckpointError, match=r"^The pruning masks do not fit the weights: "):
        weights.of_checkpoint(state, file)


@pytest.mark.parametrize("optimizer", [None, {}, {"pruning": {"masks": []}}])
def test_a_checkpoint_without_masks_or_without_optimizer_has_its_weights(saved, optimizer):
    state, file = saved
    found = weights.of_checkpoint({**state, "optimizer_state_dict": optimizer}, file)
    assert found == state["model_state_dict"]


@pytest.mark.parametrize("name", weights.DTYPES)
def test_floats_are_cast_and_integers_and_infinities_kept(name):
    before = {
        "w": torch.randn(5),
        "double": torch.randn(3, dtype=torch.float64),
        "steps": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "causal": torch.tensor([0.0, -torch.inf]),
        "extra": {"any": 1},
    }
    found = weights.cast(before, name)
    kinds = {key: value.dtype for key, value in found.items() if key != "extra"}
    wanted = weights.DTYPES[name]
    assert kinds == {
        "w": wanted, "double": wanted, "causal": wanted, "steps": torch.int64, "flags": torch.bool
    }  # fmt: skip
    assert torch.equal(found["causal"].float(), before["causal"])
    assert found["extra"] == {"any": 1}
    assert weights.cast(before, KEPT) == before


@pytest.mark.parametrize(("name", "value"), [("float16", 65520.0), ("float32", 1e39), ("bfloat16", 3.4e38)])
def test_what_overflows_is_refused_by_name(name, value):
    within = torch.tensor([1.0, -value * 0.99], dtype=torch.float64)
    beyond = torch.tensor([1.0, -value * 1.01], dtype=torch.float64)
    if name != "float32":
        weights.cast({"w": within}, name)
    with pytest.raises(CheckpointError, match=f"^w holds values beyond the range of {name}: "):
        weights.cast({"w": beyond}, name)


def test_safetensors_gets_contiguous_tensors_of_their_own():
    shared = torch.randn(4, 3)
    found = weights.plain({"a": shared, "b": shared, "c": shared.t()})
    assert len({t.data_ptr() for t in found.values()}) == 3
    assert all(t.is_contiguous() for t in found.values())
    assert torch.equal(found["c"], shared.t())
