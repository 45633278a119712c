"""diff: two checkpoints of the trainer, and what they do not have in common."""

import json

import pytest
import torch

from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import damage, saved


def at(run, step):
    """The training checkpoint of a step of a run."""
    root = run / "checkpoints"
    return next(
        root / m.file for m in listing.manifests(root) if m.global_step == step and m.tier == "training"
    )


def compared(cli_main, a, b):
    return json.loads(cli_main("diff", a, b, "--json").output(), parse_constant=pytest.fail)


def test_a_checkpoint_does_not_differ_from_itself(whole_run, cli_main):
    found = compared(cli_main, at(whole_run, 8), at(whole_run, 8))
    assert (found["config"], found["optimizer"], found["position"]) == ({}, {}, {})
    assert {layer["change"] for layer in found["layers"]} == {0.0}
    assert found["mask_overlap"] == 1.0


def test_norms_changes_and_masks_are_those_of_the_tensors(whole_run, cli_main):
    a, b = at(whole_run, 4), at(whole_run, 24)
    found = compared(cli_main, a, b)
    assert found["position"]["global_step"] == [4, 24]
    old, new = (serialize.load(path)["model_state_dict"] for path in (a, b))
    assert [layer["name"] for layer in found["layers"]] == list(old)
    shared = either = 0
    for layer in found["layers"]:
        left, right = old[layer["name"]].double(), new[layer["name"]].double()
        assert layer["norms"] == pytest.approx([left.norm().item(), right.norm().item()])
        assert layer["change"] == pytest.approx(((right - left).norm() / left.norm()).item())
        if left.dim() > 1:
            both, any_of = (
                ((left == 0) & (right == 0)).sum().item(),
                ((left == 0) | (right == 0)).sum().item(),
            )
            assert layer["mask_overlap"] == pytest.approx(both / any_of)
            shared, either = shared + both, either + any_of
    assert found["mask_overlap"] == pytest.approx(shared / either)
    assert 0 < found["mask_overlap"] < 1  # the pruning went on between the two


def test_what_was_zero_has_changed_beyond_measure(tmp_path, cli_main):
    target = Store(tmp_path / "checkpoints", "run")
    files = [tmp_path / "checkpoints" / saved(target, f"training/{n}.pt", float(n)).file for n in (0, 3)]
    assert compared(cli_main, *files)["layers"][0]["change"] == "inf"
    assert compared(cli_main, files[0], files[0])["layers"][0]["change"] == 0.0


def test_what_was_set_differently_is_named(whole_run, finished, cli_main):
    found = compared(cli_main, whole_run / "checkpoints", finished / "checkpoints")
    assert found["config"] == {
        "checkpoint.interval_steps": [1, 4],
        "checkpoint.keep_last": [100, 2],
        "checkpoint.policy.interval.steps": [1, 4],
        "checkpoint.policy.interval.keep_last": [100, 2],
    }
    assert {layer["change"] for layer in found["layers"]} == {0.0}  # it changes nothing in the training
    assert found["metrics"]["accuracy"][0] == found["metrics"]["accuracy"][1]
    out = cli_main("diff", at(whole_run, 4), finished).succeeded().out
    for word in ("checkpoint.keep_last", "conv1.weight", "group.0.lr", "global_step", "zeros in common"):
        assert word in out


def test_layers_of_one_side_or_of_another_shape_are_reported(run, cli_main, tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"model_state_dict": {"w": torch.zeros(2, 2), "v": torch.tensor([float("nan")])}}, path)
    found = compared(cli_main, run / "checkpoints" / "training" / "a.pt", path)
    by_name = {layer["name"]: layer for layer in found["layers"]}
    assert by_name["w"]["shapes"] == [[8], [2, 2]]
    assert by_name["w"]["change"] is None
    assert by_name["v"]["norms"] == [None, "nan"]


def test_what_cannot_be_compared_is_one_line(run, cli_main, tmp_path):
    folder = run / "checkpoints" / "training"
    torch.save({"x": 1}, tmp_path / "x.pt")
    damage(folder / "a.pt")
    cases = [
        (tmp_path / "x.pt", "has no model_state_dict"),
        (tmp_path / "nowhere.pt", "nowhere.pt"),
        (folder / "a.pt", "does not match the digest"),
        (tmp_path, "has no checkpoints"),
    ]
    for path, sentence in cases:
        code, out, err = cli_main("diff", folder / "b.pt", path)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert sentence in err
