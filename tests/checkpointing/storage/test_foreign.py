"""Files that others wrote: the refusal says what each is and what to do; weights alone are loaded."""

import argparse
import contextlib
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from peakpoint import CheckpointError, CheckpointManager, load_checkpoint, load_model, resume_training
from peakpoint.checkpointing.storage import foreign
from peakpoint.commands.dispatch import main
from peakpoint.deployment.release import release
from tests.checkpointing import publish_cases
from tests.conftest import one_line, run_main
from tests.states import differences


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained():
    """A network and its optimizer after a step."""
    torch.manual_seed(7)
    model = small()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


LOADED = {
    "weights.pth": lambda p, model, opt: torch.save(model.state_dict(), p),
    "best_model.pth": lambda p, model, opt: torch.save(
        {
            "epoch": 3,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": opt.state_dict(),
            "best_metric": np.float64(0.7),
            "metrics": {"accuracy": 0.7},
        },
        p,
    ),
    "checkpoint_epoch_3.pth": lambda p, model, opt: torch.save(
        {
            "epoch": 3,
            "global_step": 30,
            "model_state_dict": model.state_dict(),
            "optimizer_state_dict": opt.state_dict(),
            "scheduler_state_dict": None,
            "rng_state": torch.get_rng_state(),
            "numpy_rng_state": np.random.get_state(),
            "args": argparse.Namespace(lr=0.1),
        },
        p,
    ),
    "model_best.pth.tar": lambda p, model, opt: torch.save(
        {
            "epoch": 3,
            "arch": "small",
            "state_dict": prefixed(model.state_dict(), "module."),
            "optimizer": opt.state_dict(),
            "args": argparse.Namespace(lr=0.1),
            "version": 2,
        },
        p,
    ),
    "compiled.pt": lambda p, model, opt: torch.save(prefixed(model.state_dict(), "module._orig_mod."), p),
    "model.safetensors": lambda p, model, opt: save_file(dict(model.state_dict()), p),
    "no_suffix": lambda p, model, opt: save_file(dict(model.state_dict()), p),
}


@pytest.mark.parametrize("name", LOADED)
def test_weights_of_others_are_loaded_with_one_warning(name, tmp_path, warnings):
    model, optimizer = trained()
    path = tmp_path / name
    LOADED[name](path, model, optimizer)
    fresh = small()
    state = load_checkpoint(path, fresh)
    assert not differences(fresh.state_dict(), model.state_dict())
    (stated,) = warnings()
    assert stated.startswith(f"{path} has no manifest: it is loaded, and its bytes cannot be verified.")
    assert isinstance(state["metrics"], dict)
    assert state.get("epoch", 3) in (3, 0)


def test_an_optimizer_of_others_is_loaded_and_a_missing_one_is_an_error(tmp_path, warnings):
    model, optimizer = trained()
    for name in ("best_model.pth", "model_best.pth.tar"):
        LOADED[name](tmp_path / name, model, optimizer)
        fresh = small()
        mine = torch.optim.AdamW(fresh.parameters())
        assert load_checkpoint(tmp_path / name, fresh, mine)["epoch"] == 3
        assert not differences(mine.state_dict(), optimizer.state_dict())
        with pytest.raises(CheckpointError, match=r"no random number generators .*: load_checkpoint\("):
            resume_training(tmp_path / name, fresh, mine)
    LOADED["weights.pth"](tmp_path / "weights.pth", model, optimizer)
    with pytest.raises(CheckpointError, match="holds no optimizer_state_dict"):
        load_checkpoint(tmp_path / "weights.pth", fresh, mine)
    assert "Left out, as it is no plain value: best_metric." in warnings()[0]


def test_another_network_and_no_weights_are_one_line(tmp_path):
    torch.save(nn.Linear(3, 9).state_dict(), tmp_path / "other.pth")
    torch.save({"state_dict": 5, "epoch": 3}, tmp_path / "none.pth")
    for name, sentence in (
        ("other.pth", "of another network: Missing key"),
        ("none.pth", "its keys: state_dict"),
    ):
        with one_line(CheckpointError, match=sentence):
            load_checkpoint(tmp_path / name, small())


def test_one_of_several_layers_is_not_taken_for_the_whole_network(tmp_path):
    several = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    torch.save(several.state_dict(), tmp_path / "several.pth")
    with pytest.raises(CheckpointError, match="of another network: Missing key"):
        load_checkpoint(tmp_path / "several.pth", nn.Linear(3, 3))


class Evil:
    def __reduce__(self):
        return Path("executed").write_text, ("x",)


@pytest.mark.parametrize("keys", [("state_dict",), ("state_dict", "arch", "pytorch-lightning_version")])
def test_nothing_is_executed(tmp_path, monkeypatch, keys):
    monkeypatch.chdir(tmp_path)
    weights = small().state_dict()
    torch.save({**dict.fromkeys(keys, weights), "args": Evil()}, "evil.pth")
    for call in (lambda path: load_checkpoint(path, small()), load_model):
        with contextlib.suppress(CheckpointError):
            call("evil.pth")
    main(["show", "evil.pth"])
    assert not Path("executed").exists()


def keras_like(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")


def folder(path, **files):
    path.mkdir()
    for name, content in files.items():
        (path / name.replace("__", ".")).write_text(content)


def onnx_file(path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    result = onnx.helper.make_tensor_value_info("y", 1, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [result])), str(path))


def cut_off(path):
    torch.save(small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])


def without_manifest(path):
    model, optimizer = trained()
    manager = CheckpointManager(path.parent / "made")
    saved = manager.save_training_checkpoint(model, optimizer, epoch=1, step=1)
    path.write_bytes(saved.read_bytes())


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
REFUSED = {
    "empty.pt": (lambda p: p.write_bytes(b""), "It is an empty file: copy it again."),
    "zeros.pt": (lambda p: p.write_bytes(bytes(5000)), "a file of zeros, as an interrupted copy leaves"),
    "lfs.pt": (
        lambda p: p.write_text(LFS),
        "a pointer of Git LFS, not the file: fetch the file with git lfs",
    ),
    "page.pt": (lambda p: p.write_text("\n<!DOCTYPE html><html>404"), "a web page, as a server sends"),
    "s3.pt": (lambda p: p.write_text('<?xml version="1.0"?><Error>'), "a web page, as a server sends"),
    "error.pt": (lambda p: p.write_text('{"message": "Not Found"}'), "JSON, not weights, and begins with"),
    "cut.pt": (cut_off, "a cut-off archive, whose end is missing: copy it again"),
    "ours.pt": (without_manifest, "a checkpoint of Peakpoint without its manifest: copy the .json"),
    "whole.pt": (
        lambda p: torch.save(small(), p),
        "holds whole objects (torch.nn.modules.batchnorm.BatchNorm1d",
    ),
    "old.pt": (
        lambda p: torch.save(small().state_dict(), p, _use_new_zipfile_serialization=False),
        "before version 1.6",
    ),
    "newer.pt": (
        lambda p: torch.save(small().state_dict(), p, pickle_protocol=4),
        "a file of torch.save with pickle_protocol=4: where you trust it",
    ),
    "script.pt": (
        lambda p: torch.jit.script(small()).save(str(p)),
        "TorchScript archive: torch.jit.load opens",
    ),
    "program.pt2": (
        lambda p: torch.export.save(torch.export.export(small().eval(), (torch.ones(2, 3),)), p),
        "a program of torch.export: torch.export.load opens it",
    ),
    "net.onnx": (onnx_file, "an ONNX file: onnxruntime runs it"),
    "data.npz": (lambda p: np.savez(p, a=np.ones(2)), "arrays of NumPy (.npz)"),
    "a.npy": (lambda p: np.save(p, np.ones(2)), "a NumPy array"),
    "saved.zip": (
        lambda p: keras_like(p, "m/saved_model.pb", "m/variables/x"),
        "a zip of a SavedModel of Tens",
    ),
    "net.keras": (lambda p: keras_like(p, "config.json", "model.weights.h5"), "a model of Keras"),
    "other.zip": (lambda p: keras_like(p, "a.txt"), "a zip archive of other files (a.txt): unpack it"),
    "hub": (lambda p: folder(p, config__json="{}"), "a folder of transformers: from_pretrained opens it"),
    "tf": (lambda p: folder(p, saved_model__pb="x"), "a SavedModel of TensorFlow: tf.saved_model.load"),
}


def weights_of(path):
    load_checkpoint(path, small())


def resumed(path):
    model, optimizer = trained()
    resume_training(path, model, optimizer)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_each_entry_says_what_the_file_is(name, tmp_path, capsys):
    make, sentence = REFUSED[name]
    path = tmp_path / name
    make(path)
    assert sentence in str(foreign.recognise(path))
    for call in (load_model, weights_of, resumed):
        with one_line(CheckpointError) as refused:
            call(path)
        assert sentence in str(refused.value)
    commands = {
        "show": (),
        "verify": (),
        "ls": (),
        "export": ("out.onnx",),
        "compare": (path,),
        "promote": ("--version", "1.0.0"),
        "unpack": (tmp_path / "out.pt",),
        "diff": (path,),
    }
    if name == "ours.pt":  # unpack and diff read it
        del commands["unpack"], commands["diff"]
    if name == "net.onnx":  # compare opens it
        del commands["compare"]
    for command, more in commands.items():
        code = main([command, str(path), *map(str, more)])
        stated = capsys.readouterr()
        assert code == 1
        assert sentence in stated.out + stated.err, command
    done = run_main(f"resume={path}")
    assert (done.code, done.out) == (1, "")
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_a_release_of_ours_in_safetensors_is_not_taken_for_the_weights_of_others(tmp_path):
    """As a kill before the manifest leaves it."""
    manifest = release.write(tmp_path, publish_cases.small("1.0.0", form=publish_cases.SAFE))
    path = tmp_path / manifest.file
    path.with_suffix(".json").unlink()
    assert path.suffix == ".safetensors"
    with pytest.raises(CheckpointError, match="a checkpoint of Peakpoint without its manifest"):
        load_checkpoint(path, small())


def test_a_plain_file_says_how_it_is_loaded(tmp_path, capsys):
    torch.save(small().state_dict(), tmp_path / "plain.pth")
    assert main(["show", str(tmp_path / "plain.pth")]) == 1
    assert "weights saved with torch.save: build its network, and peakpoint.load_checkpoint(path, model)" in (
        capsys.readouterr().err
    )
    with pytest.raises(CheckpointError, match=r"weights saved with torch\.save: build its network"):
        load_model(tmp_path / "plain.pth")


def test_a_pipe_and_a_giant_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    with (tmp_path / "sparse.pt").open("wb") as file:
        file.truncate(200 << 30)
    assert foreign.recognise(tmp_path / "pipe.pt") is None
    assert "zeros" in str(foreign.recognise(tmp_path / "sparse.pt"))
    assert foreign.recognise(tmp_path / "nothing.pt") is None
    assert json.dumps(foreign.described(tmp_path)) == '""'
