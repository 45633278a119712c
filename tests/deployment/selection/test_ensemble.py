"""The best networks of a run together, of real runs."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.optim import swa_utils

from peakpoint import CheckpointError, load_model
from peakpoint.checkpointing.policies.top_k import TopK
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.inference import averaging, evaluate, weights
from peakpoint.deployment.selection import ensemble
from peakpoint.optimizers.parameters import zeros
from peakpoint.trainer.data.settings import TEST
from tests.checkpointing.checkpoint_cases import damage
from tests.conftest import TINY, complete_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def resnet_run(tmp_path_factory):
    """A dense run of a network with batch normalisation; not to be changed."""
    settings = [each for each in TINY if not each.startswith("model")]
    return complete_run(
        tmp_path_factory.mktemp("averaged") / "run", *settings, "model=resnet20", "pruning=none"
    )


@pytest.fixture
def copied(resnet_run, tmp_path):
    shutil.copytree(resnet_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run" / "checkpoints"


@pytest.fixture(scope="module")
def loaded(resnet_run):
    """The ensemble of the run, not recalibrated, and its data."""
    found, trained_with = ensemble.load(ensemble.choose(resnet_run / "checkpoints", None), CPU)
    return found, evaluate.data_of(trained_with)


def test_the_networks_of_top_k_come_best_first(resnet_run):
    root = resnet_run / "checkpoints"
    chosen = ensemble.choose(root, None)
    assert chosen.role == TopK.tag
    assert len(chosen.manifests) == 3
    values = [m.metrics["accuracy"] for m in chosen.manifests]
    assert values == sorted(values, reverse=True)
    assert ensemble.choose(root, 2).manifests[0].file == chosen.manifests[0].file
    assert len(ensemble.choose(root, 2).manifests) == 2


def test_without_top_k_the_milestones_of_different_steps_are_taken(copied):
    for file in copied.glob("milestone/top_k*"):
        file.unlink()
    there = {m.global_step for m in listing.manifests(copied) if m.tier == "milestone"}
    assert len(there) > 1
    chosen = ensemble.choose(copied, None)
    assert chosen.role == "milestone"
    assert sorted(m.global_step for m in chosen.manifests) == sorted(there)


def test_a_pruned_run_gives_only_networks_at_its_target(pruned_run):
    with pytest.raises(CheckpointError, match=r"at its target sparsity 0\.7, and two are needed"):
        ensemble.choose(pruned_run / "checkpoints", None)


def test_the_results_on_a_split_are_those_of_numpy(loaded, resnet_run):
    found, data = loaded
    result = ensemble.measure(found, data, "val")[ensemble.PROBABILITIES]
    images, labels = (torch.cat(part) for part in zip(*data.val_batches(), strict=True))
    probabilities = []
    for manifest in found.chosen.manifests:
        with torch.no_grad():
            logits = load_model(resnet_run / "checkpoints" / manifest.file)(images).double().numpy()
        raised = np.exp(logits)
        probabilities.append(raised / raised.sum(axis=1, keepdims=True))
    mean = np.mean(probabilities, axis=0)
    assert result.metrics["accuracy"] == (mean.argmax(axis=1) == labels.numpy()).mean()
    loss = -np.log(mean[np.arange(len(labels)), labels.numpy()]).mean()
    assert result.metrics["loss"] == pytest.approx(loss, rel=1e-4)


def test_the_best_measures_as_it_was_recorded(loaded):
    found, data = loaded
    result = ensemble.measure(found, data, "val")[ensemble.BEST]
    assert result.metrics == pytest.approx(dict(found.chosen.manifests[0].metrics), rel=1e-4)
    assert result.against is None


def test_the_mean_has_the_statistics_of_an_epoch_of_training_images(resnet_run, monkeypatch):
    found, trained_with = ensemble.load(ensemble.choose(resnet_run / "checkpoints", None), CPU)
    data = evaluate.data_of(trained_with)
    states = [one.state_dict() for one in found.networks]
    expected = ensemble.load(found.chosen, CPU)[0].average
    assert expected.state_dict().keys() == states[0].keys()
    for name, value in expected.named_parameters():
        torch.testing.assert_close(value.detach(), sum(state[name] for state in states) / len(states))
    for held_out in ("val_batches", "test_batches", "read_test"):
        monkeypatch.setattr(data, held_out, lambda: pytest.fail("held-out images were read"))
    ensemble.recalibrate(found, data)
    swa_utils.update_bn(data.train_batches(found.chosen.manifests[0].epoch), expected)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.average.state_dict()[name], value), name
    assert not found.average.training


def test_the_test_set_is_read_once(loaded, monkeypatch):
    found, data = loaded
    read, count = type(data.cfg).read, []
    monkeypatch.setattr(type(data.cfg), "read", lambda self, part: count.append(part) or read(self, part))
    for split in ("val", "test"):
        ensemble.measure(found, data, split)
    assert count == [TEST]


def test_networks_of_different_masks_get_those_of_the_best(pruned_run):
    root = pruned_run / "checkpoints"
    pruned = [m for m in listing.manifests(root) if TopK.tag in m.tags]
    best = max(pruned, key=lambda m: m.sparsity)
    others = [m for m in pruned if m.global_step != best.global_step]
    chosen = ensemble.Chosen(root, (best, *others), "accuracy", TopK.tag)
    found, _ = ensemble.load(chosen, CPU)
    assert found.masks_differ
    assert found.sparsity == pytest.approx(best.sparsity)
    assert all(zeros(one).prunable < found.sparsity for one in found.networks[1:])
    saved = serialize.load(root / best.file)
    masks = weights.masks(saved, saved["model_state_dict"])
    mean = averaging.mean_weights([one.state_dict() for one in found.networks], {})
    for name, mask in masks.items():
        kept = found.average.state_dict()[name]
        assert torch.equal(kept, torch.where(mask, mean[name], 0.0))


def test_one_checkpoint_is_no_ensemble(copied):
    keep = ensemble.choose(copied, 2).manifests[0]
    for mark in copied.glob("milestone/*.json"):
        if listing.read_manifest(mark).global_step != keep.global_step:
            mark.unlink()
    with pytest.raises(CheckpointError, match="holds 1 checkpoint to average, and two are needed: train"):
        ensemble.choose(copied, None)


def test_a_damaged_file_is_refused(copied):
    chosen = ensemble.choose(copied, None)
    damage(copied / chosen.manifests[1].file)
    with pytest.raises(CheckpointError, match="does not match the digest"):
        ensemble.load(chosen, CPU)


def test_another_architecture_is_refused(copied, whole_run):
    chosen = ensemble.choose(copied, 2)
    stranger = next(m for m in listing.manifests(whole_run / "checkpoints") if m.tier == "milestone")
    contents = serialize.load(whole_run / "checkpoints" / stranger.file)
    role = replace(chosen.manifests[0], file=stranger.file, metrics={"accuracy": 1.0, "loss": 0.1})
    role = replace(role, global_step=1)
    Store(copied, role.run).save([role], lambda file: serialize.dump(contents, file))
    with pytest.raises(CheckpointError, match="hold different networks"):
        ensemble.load(ensemble.choose(copied, None), CPU)
