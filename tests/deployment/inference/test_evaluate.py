"""A network measured again gives what its run recorded, on the data of that run and on no other."""

import shutil
from dataclasses import replace

import pytest
import torch

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import listing
from peakpoint.deployment.inference import evaluate, network
from tests.checkpoint_fixtures import patterns


def evaluated(run):
    """Return the root of a run, a checkpoint with metrics, and what it was trained with."""
    root = run / "checkpoints"
    manifest = next(m for m in listing.manifests(root) if m.tier == "milestone")
    return root, manifest, evaluate.trained_with(root, manifest)


def test_what_was_recorded_is_measured_again(measured_run):
    root, manifest, facts = evaluated(measured_run)
    data = evaluate.data_of(facts)
    for each in (None, data, data):  # one reading serves several networks
        found = evaluate.measure(network.load(root, manifest), facts, data=each)
        assert (found.samples, found.split) == (60, "val")
        assert found.metrics == pytest.approx(manifest.metrics, rel=1e-6)
    assert evaluate.measure(network.load(root, manifest), facts, split="test").samples == 80


def test_a_run_in_bfloat16_is_measured_in_bfloat16(measured_run):
    root, manifest, facts = evaluated(measured_run)
    half = {**facts, "config": {**facts["config"], "precision": "bf16"}}
    loss = evaluate.measure(network.load(root, manifest), half).metrics["loss"]
    assert loss != manifest.metrics["loss"]
    assert loss == pytest.approx(manifest.metrics["loss"], rel=0.05)


def test_a_manifest_of_a_release_says_it_without_its_file(measured_run, tmp_path):
    _, manifest, facts = evaluated(measured_run)
    released = replace(manifest, tier="production", metadata={"trained_with": facts})
    assert evaluate.trained_with(tmp_path, released) == facts
    with pytest.raises(CheckpointError, match="which data"):
        evaluate.trained_with(tmp_path, replace(released, metadata=None))
    less = {**facts, "config": {k: v for k, v in facts["config"].items() if k != "precision"}}
    with pytest.raises(CheckpointError, match="which data"):
        evaluate.trained_with(tmp_path, replace(released, metadata={"trained_with": less}))


def test_data_that_was_moved_is_found_and_other_data_refused(measured_run, tmp_path):
    root, manifest, facts = evaluated(measured_run)
    gone = {**facts["config"]["data"], "root": str(tmp_path / "gone")}
    moved = {**facts, "config": {**facts["config"], "data": gone}}
    weights = network.load(root, manifest)
    with pytest.raises(CheckpointError, match="gone"):
        evaluate.measure(weights, moved)
    there = shutil.copytree(measured_run.parent / "data", tmp_path / "there")
    found = evaluate.measure(weights, moved, data_root=there)
    assert found.metrics == pytest.approx(manifest.metrics, rel=1e-6)
    patterns(there / "train.npz", 240, seed=3)
    with pytest.raises(CheckpointError, match="fingerprint differs"):
        evaluate.measure(weights, moved, data_root=there)


def test_wrong_splits_and_devices_are_one_line(measured_run):
    root, manifest, facts = evaluated(measured_run)
    weights = network.load(root, manifest)
    with pytest.raises(CheckpointError, match="test, val"):
        evaluate.measure(weights, facts, split="train")
    if not torch.cuda.is_available():
        assert evaluate.usable("auto") == torch.device("cpu")
    for device in ("cuda:99", "nonsense", "meta"):
        with pytest.raises(CheckpointError, match=f"no device '{device}'"):
            evaluate.measure(weights, facts, device=device)
