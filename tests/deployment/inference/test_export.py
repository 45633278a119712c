"""Exported files answer as their source does, in their own runtime, or do not come to be."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from peakpoint import CheckpointError
from peakpoint.base.files import STAGED_PREFIX
from peakpoint.deployment.inference import export, golden, network, onnx_files
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.conftest import ROOT, TINY, complete_run, one_line
from tests.faults.fault_cases import mounted


@pytest.fixture(scope="module")
def lenet_run(tmp_path_factory):
    """Return a run of a pruned LeNet-5 with dropout; not to be changed."""
    return complete_run(tmp_path_factory.mktemp("lenet") / "run", *TINY)


@pytest.fixture(scope="module")
def lenet(lenet_run):
    """Return the network of the best checkpoint of that run, to export."""
    return export.source(lenet_run)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """Return a pruned ResNet-20, whose batch normalisation has seen data; not to be changed."""
    run = tmp_path_factory.mktemp("resnet") / "run"
    return export.source(complete_run(run, *TINY, "model=resnet20", "epochs=2", "checkpoint.compress=true"))


@pytest.fixture(scope="module")
def converted(resnet, tmp_path_factory):
    """Return the ONNX file of `resnet` and its opset."""
    return written(resnet, tmp_path_factory.mktemp("onnx") / "a.onnx")[:2]


def written(source, target, kind="onnx", *, opset=None, batch=None):
    """Return the file, its opset and how far its outputs are off."""
    opset, agreement = export.write(source, target, kind, opset=opset, batch=batch)
    assert agreement.sound
    return target, opset, agreement.largest


def unseen(source, count):
    """Return inputs that are not the golden ones."""
    draw = torch.Generator().manual_seed(count)
    return torch.randn(count, *source.description.image_shape, generator=draw)


def answers(source, images):
    with torch.no_grad():
        return source.network(images).numpy()


def entries(folder: Path):
    return sorted(path.name for path in folder.iterdir())


def machine_free(content):
    here = (str(ROOT), sys.prefix, "site-packages")
    return not any(word.encode() in content for word in here)


def test_an_onnx_file_answers_as_the_network_does_for_any_batch(resnet, converted):
    session = onnxruntime.InferenceSession(str(converted[0]), providers=["CPUExecutionProvider"])
    for count in (1, 2, 7):
        images = unseen(resnet, count)
        (found,) = session.run(None, {"images": images.numpy()})
        np.testing.assert_allclose(found, answers(resnet, images), rtol=0, atol=1e-4)
    (fed,) = session.get_inputs()
    (out,) = session.get_outputs()
    assert (fed.name, fed.type, fed.shape) == ("images", "tensor(float)", ["batch", 3, 12, 12])
    assert (out.name, out.type, out.shape) == ("logits", "tensor(float)", ["batch", 4])


@pytest.mark.slow
def test_an_onnx_file_says_where_it_comes_from_and_how_it_is_fed(resnet, converted, tmp_path):
    file, opset = converted
    model = onnx.load(str(file))
    onnx.checker.check_model(model, full_check=True)
    notes = {each.key: each.value for each in model.metadata_props}
    assert notes["peakpoint.source"] == resnet.manifest.file
    assert notes["peakpoint.digest"] == resnet.manifest.digest
    assert network.described(json.loads(notes["peakpoint.config"])) == resnet.description
    assert "peakpoint.version" not in notes  # it is not of a release
    assert onnx_files.opened(file).notes == {k.removeprefix("peakpoint."): v for k, v in notes.items()}
    assert opset == next(each.version for each in model.opset_import if not each.domain)
    content = file.read_bytes()
    assert machine_free(content)
    again = written(resnet, tmp_path / "b.onnx")[0].read_bytes()
    assert content == again


def test_pruned_weights_are_zero_in_an_onnx_file(resnet, converted):
    initializers = onnx.load(str(converted[0])).graph.initializer
    values = {each.name: numpy_helper.to_array(each) for each in initializers}
    pruned = {k: v for k, v in resnet.network.state_dict().items() if v.ndim > 1}
    assert sum(int((v == 0).sum()) for v in pruned.values()) > 0.5 * sum(v.numel() for v in pruned.values())
    for name, weight in pruned.items():
        assert np.array_equal(values[name] == 0, weight.numpy() == 0), name


def test_an_opset_and_a_fixed_batch(lenet, tmp_path):
    file, opset, _ = written(lenet, tmp_path / "a.onnx", opset=18, batch=3)
    assert opset == onnx.load(str(file)).opset_import[0].version == 18
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [3, 3, 12, 12]
    images = unseen(lenet, 3)
    (found,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(found, answers(lenet, images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [None, 3])
def test_a_torch_program_answers_as_the_network_does(resnet, tmp_path, batch):
    file, opset, _ = written(resnet, tmp_path / "a.pt2", "torch", batch=batch)
    assert opset is None
    extra = {export.NOTES: ""}
    program = torch.export.load(file, extra_files=extra).module()
    for count in (3, 1, 5):
        images = unseen(resnet, count)
        if batch in (None, count):
            with torch.no_grad():
                np.testing.assert_allclose(program(images), answers(resnet, images), rtol=0, atol=1e-5)
        else:
            with pytest.raises(Exception, match="Guard failed"):
                program(images)
    assert json.loads(extra[export.NOTES]) == resnet.notes()
    assert machine_free(file.read_bytes())


FORMS = [("pt", "float32", True), ("safetensors", "float32", False), ("pt", "float16", False)]


@pytest.mark.parametrize(("form", "dtype", "compress"), FORMS)
def test_a_release_is_compared_with_its_golden_outputs(lenet_run, tmp_path, form, dtype, compress):
    from_run = network.resolve(lenet_run)
    form = release.Form(format=form, dtype=dtype, compress=compress)
    chosen = release.of(*from_run, version="1.2.0", form=form, reason="as a test")
    made = release.write(tmp_path / "served", chosen)
    found = export.source(tmp_path / "served" / made.file)
    assert found.released
    kind, suffix = ("onnx", ".onnx") if dtype == "float16" else ("torch", ".pt2")
    file, _, largest = written(found, tmp_path / f"a{suffix}", kind)
    assert found.notes()["version"] == "1.2.0"
    assert found.notes()["digest"] == made.digest
    if kind == "onnx":
        assert onnx_files.opened(file).notes["version"] == "1.2.0"
    # The golden outputs are those of the release's own weights, float16 ones included.
    images, expected = golden.read(tmp_path / "served", made)
    assert torch.equal(found.outputs, expected)
    rounded = (
        (expected - golden.outputs(network.rebuilt(*from_run)[0], found.description, images)).abs().max()
    )
    assert (rounded > largest) if dtype == "float16" else (rounded < 1e-5)


def test_a_release_that_answers_otherwise_here_is_refused(lenet_run, tmp_path, monkeypatch):
    form = release.Form(format="pt", dtype="float32", compress=False)
    made = release.write(
        tmp_path, release.of(*network.resolve(lenet_run), version="1.0.0", form=form, reason="as a test")
    )
    path = tmp_path / made.file
    # Code that changed since: the same weights, another network.
    monkeypatch.setattr("peakpoint.models.lenet.F.relu", torch.nn.functional.gelu)
    with pytest.raises(CheckpointError, match="The network is not the one that was released"):
        export.source(path)


def test_batches_are_filled_up_and_cut_again():
    seen = []

    def call(part):
        seen.append(len(part))
        return part * 2

    images = torch.arange(5.0)[:, None]
    for size in (3, 12, 1):
        assert torch.equal(export.in_batches(call, images, size), images * 2)
    assert seen == [3, 3, 12, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_another_answer_is_refused_and_leaves_nothing(lenet, tmp_path, kind, suffix):
    off = lenet.outputs.clone()
    off[3, 1] += 2e-4 * float(off.abs().max())
    with one_line(CheckpointError, "was not written: its outputs differ"):
        written(replace(lenet, outputs=off), tmp_path / f"a{suffix}", kind)
    off[3, 1] = math.nan
    with one_line(CheckpointError, "was not written: its outputs differ"):
        written(replace(lenet, outputs=off), tmp_path / f"a{suffix}", kind)
    assert entries(tmp_path) == []


def test_what_answers_otherwise_one_by_one_is_not_exported_for_any_batch(lenet, tmp_path):
    class Together(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            return self.inner(images - images.mean(0, keepdim=True))

    model = Together(lenet.network).eval()
    outputs = golden.outputs(model, lenet.description, lenet.images)
    source = replace(lenet, network=model, outputs=outputs)
    with pytest.raises(CheckpointError, match="was not written: its outputs differ"):
        written(source, tmp_path / "any.pt2", "torch")
    written(source, tmp_path / "all.pt2", "torch", batch=len(lenet.images))


@pytest.mark.parametrize("make", [lambda p: p.write_text("mine"), lambda p: p.symlink_to("nowhere")])
def test_nothing_is_replaced(lenet, tmp_path, make):
    """Not even a file that came while the network was traced, after the command had looked."""
    target = tmp_path / "a.pt2"
    make(target)
    before = target.lstat()
    with pytest.raises(CheckpointError, match=r"a\.pt2 exists: choose another name"):
        written(lenet, target, "torch")
    assert target.lstat() == before
    assert entries(tmp_path) == ["a.pt2"]


def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(lenet, tmp_path):
    with files_no_larger_than(10_000), one_line(CheckpointError, "File too large.* are free"):
        written(lenet, tmp_path / "a.pt2", "torch")
    assert entries(tmp_path) == []


@pytest.mark.root
@pytest.mark.parametrize(("kind", "suffix"), [("onnx", ".onnx"), ("torch", ".pt2")])
def test_a_full_disk_is_one_line_and_leaves_nothing(lenet, tmp_path, kind, suffix):
    with mounted(tmp_path / "disk", "-t tmpfs -o size=16k tmpfs") as disk:
        with one_line(CheckpointError, r"No space left on device; it needs .* are free"):
            written(lenet, disk / f"a{suffix}", kind)
        assert entries(disk) == []


def test_what_others_left_in_the_folder_stays(lenet, tmp_path):
    (tmp_path / f"{STAGED_PREFIX}1-another.pt2").write_text("not ours to delete")
    written(lenet, tmp_path / "a.pt2", "torch")
    assert entries(tmp_path) == [f"{STAGED_PREFIX}1-another.pt2", "a.pt2"]


@pytest.mark.parametrize("opset", [17, 9999])
def test_an_opset_that_cannot_be_written_is_refused_before_computing(opset):
    with pytest.raises(CheckpointError, match=f"--opset {opset} cannot be written: choose one from 18 to"):
        onnx_files.check(opset)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_one_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    with one_line(CheckpointError, rf"^{package} is not installed: pip install 'peakpoint\[onnx\]'\.$"):
        onnx_files.check(None)


def test_a_file_that_is_no_onnx_file_is_one_line(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing of the kind")
    with one_line(CheckpointError, "cannot be opened in onnxruntime"):
        onnx_files.opened(tmp_path / "a.onnx")
    with one_line(CheckpointError, "cannot be read as ONNX"):
        onnx_files.weights(tmp_path / "a.onnx")


def test_images_that_an_onnx_file_does_not_take_are_one_line(converted):
    with one_line(CheckpointError, "cannot be run by onnxruntime"):
        onnx_files.opened(converted[0]).run(torch.zeros(2, 3, 5, 5))
