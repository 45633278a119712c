import pytest
import torch

from peakpoint.optimizers.pruning.masks import pack, unpack
from tests.optimizers.optimizer_cases import (
    OPTIMIZERS,
    built,
    gradients,
    network,
    pruned_run,
    settings,
    through_a_file,
    train,
    zeros,
)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_optimizer_continues_bit_for_bit(name, channels_last):
    """Saved in mid-ramp, at a step between two updates, through a file."""
    net, optimizer, pruner = pruned_run(name, channels_last, end_step=61)
    train(net, optimizer, 1, 35)
    assert 0 < pruner.sparsity < 0.7
    saved = through_a_file({"model": net.state_dict(), "optimizer": optimizer.state_dict()})
    other, resumed, second = pruned_run(name, channels_last, end_step=61)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert (second.step, second.sparsity, second.mask_version) == (35, pruner.sparsity, pruner.mask_version)
    train(net, optimizer, 36, 70)
    train(other, resumed, 36, 70)
    assert (second.step, second.sparsity, second.mask_version) == (70, 0.7, pruner.mask_version)
    for (key, expected), got in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(expected, got), key
    for expected, got in zip(pruner.masks, second.masks, strict=True):
        assert torch.equal(expected, got)
    for expected, got in zip(net.parameters(), other.parameters(), strict=True):
        for key, value in optimizer.state[expected].items():
            assert torch.equal(value, resumed.state[got][key]), key


def test_the_state_is_small_and_plain():
    net, optimizer, pruner = pruned_run()
    assert optimizer.state_dict()["pruning"]["masks"] == []
    train(net, optimizer, 1, 21)
    state = optimizer.state_dict()["pruning"]
    assert set(state) == {"step", "sparsity", "mask_version", "settings", "masks"}
    assert state["settings"]["target"] == 0.7
    assert [(m.dtype, m.numel()) for m in state["masks"]] == [
        (torch.uint8, (weight.numel() + 7) // 8) for weight in pruner.params
    ]
    assert not any("mask" in key or "pruning" in key for key in net.state_dict())


def resume_with(saved_changes, steps, new_changes):
    net, optimizer, _ = pruned_run(**saved_changes)
    train(net, optimizer, 1, steps)
    other, resumed, pruner = pruned_run(**new_changes)
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    return other, resumed, pruner


def test_settings_given_at_construction_win():
    net, optimizer, pruner = resume_with({"target": 0.5}, 25, {"target": 0.8, "end_step": 40})
    assert pruner.settings == settings(target=0.8, end_step=40)
    train(net, optimizer, 26, 40)
    assert pruner.sparsity == 0.8


def test_past_the_end_the_next_step_catches_up():
    net, optimizer, pruner = resume_with({"end_step": 1000}, 30, {"end_step": 20})
    assert pruner.sparsity < 0.7
    train(net, optimizer, 31, 31)
    assert pruner.sparsity == 0.7
    version = pruner.mask_version
    train(net, optimizer, 32, 50)
    assert pruner.mask_version == version


def test_sparsity_never_goes_down():
    net, optimizer, pruner = resume_with({"target": 0.7}, 25, {"target": 0.2, "end_step": 60})
    before = zeros(pruner)
    train(net, optimizer, 26, 70)
    assert (pruner.sparsity, zeros(pruner)) == (0.7, before)


def test_the_mask_version_grows_only_with_a_change_also_after_a_resume():
    slow = {"schedule": "linear", "end_step": 10_000, "frequency": 1}
    net, optimizer, pruner = resume_with(slow, 30, slow)
    version, masks = pruner.mask_version, pruner.masks
    train(net, optimizer, 31, 32)
    assert (pruner.mask_version, pruner.masks) == (version, masks)
    assert pruner.sparsity == pytest.approx(0.7 * 30 / 9998)


def test_a_state_saved_without_pruning_begins_with_every_weight_kept():
    """Trained dense, then pruned: whatever the pruner did before the load is forgotten."""
    plain = built("adamw", network())
    net, optimizer, pruner = pruned_run()
    train(net, optimizer, 1, 21)
    assert pruner.masks
    optimizer.load_state_dict(plain.state_dict())
    assert (pruner.step, pruner.sparsity, pruner.mask_version, pruner.masks) == (0, 0.0, 0, [])
    train(net, optimizer, 1, 21)
    assert pruner.sparsity == 0.7


@pytest.mark.parametrize("key", ["step", "sparsity", "mask_version", "masks"])
def test_a_missing_key_is_named(key):
    _net, optimizer, _ = pruned_run()
    state = optimizer.state_dict()
    del state["pruning"][key]
    with pytest.raises(ValueError, match=f"no '{key}' in the pruning state"):
        optimizer.load_state_dict(state)


def test_masks_of_another_model_are_refused():
    net, optimizer, _pruner = pruned_run()
    train(net, optimizer, 1, 21)
    state = optimizer.state_dict()
    fewer = {**state, "pruning": {**state["pruning"], "masks": state["pruning"]["masks"][1:]}}
    with pytest.raises(ValueError, match="has 3 masks, and the model has 4 prunable"):
        optimizer.load_state_dict(fewer)
    state["pruning"]["masks"][0] = state["pruning"]["masks"][0][1:]
    with pytest.raises(ValueError, match=r"does not fit a weight of shape \(8, 3, 3, 3\)"):
        optimizer.load_state_dict(state)


def test_loading_leaves_the_given_state_whole():
    net, optimizer, _ = pruned_run("adamwspam")
    train(net, optimizer, 1, 10)
    state = optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert {"pruning", "spam"} <= set(state)


def test_a_pruned_state_loads_without_a_pruner():
    net, optimizer, _ = pruned_run()
    train(net, optimizer, 1, 21)
    plain = built("adamw", net)
    plain.load_state_dict(optimizer.state_dict())
    gradients(net, 22)
    plain.step()


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 3, 3, 3), (4, 2, 1, 1)])
def test_masks_pack_in_logical_order(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    weight = torch.empty(shape)
    bits = pack(mask)
    assert torch.equal(unpack(bits, weight), mask)
    if len(shape) == 4:
        other = weight.to(memory_format=torch.channels_last)
        assert torch.equal(pack(mask.to(memory_format=torch.channels_last)), bits)
        assert torch.equal(unpack(bits, other), mask)
        assert unpack(bits, other).stride() == other.stride()


def test_two_pruned_states_do_not_share_memory_with_the_masks():
    """A background writer may still read the state while training continues."""
    net, optimizer, _pruner = pruned_run()
    train(net, optimizer, 1, 12)
    state = optimizer.state_dict()["pruning"]["masks"]
    copies = [mask.clone() for mask in state]
    train(net, optimizer, 13, 30)
    assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))
