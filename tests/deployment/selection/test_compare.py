"""Networks of real runs side by side: their records, their files and other code say the same."""

import shutil

import pytest
import torch

from peakpoint import CheckpointError, CheckpointManager, load_model
from peakpoint.checkpointing.state import serialize
from peakpoint.deployment.inference import evaluate, export, network
from peakpoint.deployment.release import release
from peakpoint.deployment.selection import compare as comparison
from peakpoint.deployment.selection.compare import compare, open_all
from tests.checkpoint_fixtures import patterns
from tests.conftest import TINY, complete_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return runs of one network, `dense`, `pruned`, `other` (another seed), and files made of `pruned`."""
    folder = tmp_path_factory.mktemp("compared")
    complete_run(folder / "dense", *TINY, "pruning=none", "data.val_fraction=0.3")
    complete_run(folder / "pruned", *TINY, "data.val_fraction=0.3", "checkpoint.compress=true")
    complete_run(folder / "other", *TINY, "data.val_fraction=0.3", "epochs=1", "seed=9")
    chosen = network.resolve(folder / "pruned")
    form = release.Form(format="safetensors", dtype="float16", compress=False)
    half = release.of(*chosen, version="1.0.0", form=form, reason="as a test")
    release.write(folder / "served", half)
    found = export.source(folder / "pruned")
    for batch in (None, 2):
        export.write(found, folder / f"batch_{batch}.onnx", "onnx", opset=None, batch=batch)
    return folder


def rows(*paths, split="val", data_root=None, rounds=2):
    networks = open_all(paths, CPU)
    return compare(networks, split, data_root=data_root, batches=(1, 3), rounds=rounds, device=CPU)


@pytest.mark.parametrize(("split", "second"), [("val", "pruned"), ("test", "other")])
def test_the_accuracy_is_that_of_an_evaluation(folder, split, second):
    found = rows(folder / "dense", folder / second, split=split)
    for row, run in zip(found, ("dense", second), strict=True):
        root, manifest = network.resolve(folder / run)
        facts = evaluate.trained_with(root, manifest)
        expected = evaluate.measure(network.load(root, manifest), facts, split=split)
        assert row.accuracy.value == pytest.approx(expected.metrics["accuracy"], abs=1e-9)
        assert row.accuracy.count == expected.samples == {"val": 43, "test": 40}[split]
    one, other = found
    assert one.against is None
    assert other.against.difference == pytest.approx(other.accuracy.value - one.accuracy.value)
    assert other.against.both + other.against.first == one.accuracy.right


def test_images_that_one_may_have_trained_on_are_refused(folder):
    with pytest.raises(CheckpointError, match="may have been trained: compare them on"):
        rows(folder / "dense", folder / "other")


def test_sizes_are_those_of_the_files(folder):
    dense, pruned, half = (
        row.size for row in rows(folder / "dense", folder / "pruned", folder / "served", split=None)
    )
    for size, path in ((dense, folder / "dense"), (pruned, folder / "pruned"), (half, folder / "served")):
        root, manifest = network.resolve(path)
        assert size.file_bytes == (root / manifest.file).stat().st_size == manifest.bytes
        weights = network.load(root, manifest).state_dict()  # LeNet-5 has no buffers
        assert size.parameters == sum(w.numel() for w in weights.values())
        assert size.nonzero == sum(int((w != 0).sum()) for w in weights.values())
        assert size.sparsity == pytest.approx(manifest.sparsity, abs=1e-9)
    assert (dense.sparsity, dense.weights_bytes) == (0, 4 * dense.parameters)
    assert pruned.weights_bytes == dense.weights_bytes
    assert half.weights_bytes == dense.weights_bytes / 2
    assert pruned.sparsity == half.sparsity == pytest.approx(0.7, abs=1e-3)
    assert half.packed_bytes < pruned.packed_bytes < 0.45 * dense.packed_bytes


def test_packed_is_what_the_packed_weights_take_on_disk(folder, tmp_path):
    (row, _) = rows(folder / "pruned", folder / "dense", split=None)
    with (tmp_path / "a.pt").open("wb") as file:
        serialize.dump(dict(row.network.weights), file, compress=True)
    assert row.size.packed_bytes == (tmp_path / "a.pt").stat().st_size


def test_an_onnx_file_and_a_release_are_right_on_the_same_images_as_their_source(folder):
    paths = (folder / "pruned", folder / "batch_None.onnx")
    source, converted = rows(*paths)
    assert (converted.against.first, converted.against.second, converted.against.p) == (0, 0, 1)
    assert converted.accuracy == source.accuracy
    assert converted.size.sparsity == source.size.sparsity
    assert converted.size.nonzero == source.size.nonzero  # no batch normalisation was folded in
    # Fed as the other, whatever their order.
    assert [row.accuracy for row in rows(*reversed(paths))] == [source.accuracy, source.accuracy]
    kinds = [row.network.kind for row in rows(folder / "served", paths[1], split=None)]
    assert kinds == ["release", "onnx"]
    half = rows(folder / "pruned", folder / "served")[1]
    assert half.against.first + half.against.second <= 1  # float16 rounds


def test_nan_is_never_right(folder):
    def broken(images):
        return torch.full((len(images), 4), torch.nan)

    root, manifest = network.resolve(folder / "dense")
    hits = comparison.hits(broken, evaluate.data_of(evaluate.trained_with(root, manifest)), "val")
    assert len(hits) == 43
    assert not any(hits)


def test_latency_is_measured_of_every_network_and_batch(folder):
    found = rows(folder / "pruned", folder / "batch_None.onnx", split=None, rounds=5)
    for row in found:
        assert sorted(row.latency) == [1, 3]
        for latency in row.latency.values():
            assert 0 < latency.seconds.low <= latency.seconds.median <= latency.seconds.high
    assert found[0].latency[1].ratio == comparison.timing.Spread(1, 1, 1)


def test_what_cannot_be_compared_is_one_line(folder, tmp_path):
    fixed, free = folder / "batch_2.onnx", folder / "batch_None.onnx"
    with pytest.raises(CheckpointError, match="takes 2 images at a time and no other number"):
        open_all([folder / "dense", fixed], CPU)
    with pytest.raises(CheckpointError, match="compare it with a checkpoint or a release of the same run"):
        rows(free, free)
    larger = complete_run(tmp_path / "larger", *TINY, "epochs=1", "data.native_size=14")
    with pytest.raises(CheckpointError, match="differ in the shape of their images or in their classes"):
        open_all([folder / "dense", larger], CPU)
    with pytest.raises(CheckpointError, match="runs in onnxruntime on the CPU"):
        open_all([free], torch.device("cuda"))
    nameless = tmp_path / "nameless.onnx"
    nameless.write_bytes(free.read_bytes().replace(b"peakpoint.config", b"someone.config_"))
    with pytest.raises(CheckpointError, match="nameless"):
        open_all([nameless], CPU)
    (tmp_path / "a.onnx").write_bytes(b"\x00\x01")
    with pytest.raises(CheckpointError, match="cannot be opened in onnxruntime"):
        open_all([tmp_path / "a.onnx"], CPU)


def test_data_that_moved_and_data_that_changed(measured_run, measured_copy, tmp_path):
    there = shutil.copytree(measured_run.parent / "data", tmp_path / "there")
    paths = (measured_run, measured_copy / "checkpoints" / "training" / "latest.pt")
    assert rows(*paths, data_root=there)[0].accuracy == rows(*paths)[0].accuracy
    assert rows(*paths, split="test", data_root=there)[0].accuracy.count == 80
    patterns(there / "train.npz", 240, seed=9)
    with pytest.raises(CheckpointError, match="fingerprint differs"):
        rows(*paths, data_root=there)


def test_a_network_that_names_no_data_is_weighed_alone(folder):
    """As the library releases it, whose training is not the trainer's."""
    manager = CheckpointManager(folder / "library")
    config = network.describe(folder / "dense").config()
    manager.save_production_checkpoint(
        load_model(folder / "dense"), version="1.0.0", config=config, metrics={}, model_card={}
    )
    manager.close()
    with pytest.raises(CheckpointError, match="which data it was trained with: use --split none"):
        rows(folder / "dense", folder / "library")
    assert rows(folder / "dense", folder / "library", split=None)[1].size.sparsity == 0
