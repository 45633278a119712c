"""The end of a run: what it needs is looked at before the first step; what fails there does not undo it."""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from torch.nn.modules.module import register_module_forward_pre_hook

from peakpoint.base.registry import register
from peakpoint.checkpointing.events import RunEnd
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.storage import listing
from peakpoint.trainer.reports import tables
from tests.conftest import TINY, rows, run_main, status

SMALL = (
    "model=lenet5",
    "epochs=1",
    "max_steps=2",
    "batch_size=4",
    "logger=[console]",
    "report=false",
    "threads=1",
)
DENSE = ("optimizer=sgd", "data.crop_padding=0")


def images(count, shape=(12, 12, 3), classes=3):
    generator = np.random.default_rng(0)
    return {
        "images": generator.integers(0, 255, (count, *shape), np.uint8),
        "labels": np.arange(count) % classes,
        "classes": np.array([f"class {i}" for i in range(classes)]),
    }


def truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


NPZ = {
    "missing": (
        lambda path: path.unlink(),
        "test.npz is missing: set data.root to the folder that holds it.",
    ),
    "truncated": (truncated, "test.npz cannot be read as an .npz file:"),
    "grey": (
        lambda path: np.savez(path, **images(6, (12, 12, 1))),
        "has images of shape (12, 12, 1), and the training set of (12, 12, 3) (height, width, channels)",
    ),
    "more classes": (
        lambda path: np.savez(path, **images(8, classes=4)),
        "has other classes than the training set: 'class 3' is in one of them alone.",
    ),
    "classes in another order": (
        lambda path: np.savez(path, **{**images(6), "classes": np.array(["class 1", "class 0", "class 2"])}),
        "has other classes than the training set: they come in another order.",
    ),
}


def refused_before_the_first_step(done, sentence):
    """One line, and nothing is trained."""
    assert done.code == 1
    assert sentence in done.err
    assert done.err.endswith("The end of the run needs it; test=false does without.\n")
    assert (done.err.count("\n"), done.out) == (1, "")


@pytest.mark.parametrize("wrong", NPZ)
def test_a_test_set_that_cannot_be_used_is_refused_before_the_first_step(train, tmp_path, wrong):
    harm, sentence = NPZ[wrong]
    for name, count in (("train", 30), ("test", 6)):
        np.savez(tmp_path / f"{name}.npz", **images(count))
    harm(tmp_path / "test.npz")
    base = (*SMALL, *DENSE, "data=npz", "data.root=.", "hydra.run.dir=run")
    refused_before_the_first_step(train(*base), sentence)
    assert not (tmp_path / "run" / "run.json").exists()
    if wrong in ("missing", "grey"):
        assert train(*base, "test=false").code == 0


FOLDER = {
    "missing": (lambda test: shutil.rmtree(test), "test is not a folder"),
    "without a class": (lambda test: shutil.rmtree(test / "b"), "Class 'b' is only in "),
    "truncated": (lambda test: truncated(test / "b" / "0.png"), "0.png cannot be read as an image"),
}


@pytest.mark.parametrize("wrong", FOLDER)
def test_a_folder_of_test_images_that_cannot_be_used_is_refused_before_the_first_step(train, tmp_path, wrong):
    harm, sentence = FOLDER[wrong]
    for split, count in (("train", 12), ("test", 1)):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 255, (12, 12, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / label / f"{i}.png")
    harm(tmp_path / "test")
    base = (*SMALL, *DENSE, "data=image_folder", "data.root=.", "hydra.run.dir=run")
    refused_before_the_first_step(train(*base), sentence)
    if wrong == "missing":
        assert train(*base, "test=false").code == 0


def test_a_resumed_run_looks_at_its_test_set_as_well(train, tmp_path):
    for name, count in (("train", 30), ("test", 6)):
        np.savez(tmp_path / f"{name}.npz", **images(count))
    base = (*SMALL, *DENSE, "data=npz", "data.root=.", "hydra.run.dir=run")
    assert train(*base).code == 0
    (tmp_path / "test.npz").rename(tmp_path / "elsewhere.npz")
    before = (tmp_path / "run" / "status.json").read_bytes()
    done = train("resume=run", "max_steps=4")
    assert (done.code, "test.npz is missing" in done.err) == (1, True)
    assert (tmp_path / "run" / "status.json").read_bytes() == before
    (tmp_path / "elsewhere.npz").rename(tmp_path / "test.npz")
    assert train("resume=run", "max_steps=4").code == 0


@dataclass(kw_only=True)
class AtTheEnd(Policy):
    """A policy of somebody's own that calls `do` when the training is over."""

    do = staticmethod(lambda: None)

    def decide(self, event):
        if isinstance(event, RunEnd):
            self.do()
        return []


@pytest.fixture
def ended(tmp_path, monkeypatch, own_components):
    """Runs a command line in `run`, and calls a function when its training is over."""
    monkeypatch.chdir(tmp_path)
    register("policy", "at_the_end")(AtTheEnd)

    def run(do, *more):
        monkeypatch.setattr(AtTheEnd, "do", staticmethod(do))
        policy = "checkpoint/policy=[best,sparsity,at_the_end]"
        base = [*TINY, policy, "epochs=1", "pruning.end_fraction=0.5", "checkpoint.background=false"]
        return run_main(*base, "hydra.run.dir=run", *more)

    return run


@pytest.fixture
def at_forward():
    """Calls a function whenever a network is used from then on."""
    handles = []
    yield lambda do: handles.append(register_module_forward_pre_hook(lambda *_: do()))
    for handle in handles:
        handle.remove()


def raises(error):
    def do(*_, **__):
        raise error

    return do


def notes(run):
    """The notes of a run that is finished, each of which the log has as a line."""
    found = status(run)
    assert (found["state"], found["step"]) == ("finished", 8)
    log = (run / "train.log").read_text()
    assert all(note in log for note in found.get("notes", []))
    return found.get("notes", [])


def test_an_end_at_which_nothing_fails_has_no_notes(ended, tmp_path):
    done = ended(lambda: None)
    assert (done.code, notes(tmp_path / "run")) == (0, [])
    assert "notes" not in status(tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (
            RuntimeError("CUDA error.\nDevice lost"),
            "RuntimeError: CUDA error. Device lost",
        ),
        (MemoryError(), "The network and a batch do not fit in memory: raise grad_accumulation"),
        (OSError(5, "Input/output error", "test"), "test: "),
    ],
    ids=["RuntimeError", "MemoryError", "OSError"],
)
def test_a_test_that_fails_is_a_note_and_the_run_is_finished(ended, at_forward, tmp_path, error, shown):
    done = ended(lambda: at_forward(raises(error))).succeeded()
    final, selected = notes(tmp_path / "run")
    assert final.startswith(f"the final weights were not tested: {shown}")
    assert selected.startswith("the selected checkpoint was not tested: ")
    assert rows(tmp_path / "run", "test") == []
    assert "best epoch" in done.out
    assert "Traceback" not in done.out + done.err
    assert ("Traceback" in (tmp_path / "run" / "train.log").read_text()) == isinstance(error, RuntimeError)
    again = run_main("resume=run")
    assert (again.code, "is finished at epoch 1" in again.out) == (0, True)


def damage_milestones(run, _):
    for path in (run / "checkpoints" / "milestone").glob("*_epoch_*.pt"):
        path.write_bytes(path.read_bytes()[:-1] + b"\0\0")


def breaks(place, error):
    return lambda _, monkeypatch: monkeypatch.setattr(f"peakpoint.trainer.{place}", raises(error))


BUG = ZeroDivisionError("a bug")
FAILURES = {
    "the selected checkpoint": (damage_milestones, ["the selected checkpoint was not tested: "]),
    "the record": (lambda run, _: (run / "metrics.jsonl").unlink(), ["no report: "]),
    "the page": (
        lambda run, _: (run / "report.html").mkdir(),
        ["no report.html: .*cannot be written: "],
    ),
    "the report": (breaks("reports.tables.print_report", BUG), ["no report: ZeroDivisionError: a bug"]),
    "the charts": (breaks("reports.charts.run.charts", BUG), ["no report.html: ZeroDivisionError: a bug"]),
    "a listener": (
        breaks("listeners.tensorboard.TensorBoard.close", OSError(5, "Input/output error")),
        ["TensorBoard was not closed: "],
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_what_fails_at_the_end_is_a_note_and_the_run_is_finished(ended, tmp_path, monkeypatch, what):
    pytest.importorskip("matplotlib")
    fail, sentences = FAILURES[what]
    run = tmp_path / "run"
    done = ended(lambda: fail(run, monkeypatch), "report=true", "logger=[console,tensorboard]")
    assert (done.code, done.err) == (0, "")
    found = notes(run)
    assert len(found) == len(sentences)
    assert all(map(re.match, sentences, found))
    assert found[0] in done.out.splitlines()
    assert ("best epoch" in done.out) == (what not in ("the record", "the report"))
    assert ("Traceback" in (run / "train.log").read_text()) == ("a bug" in found[0])
    if what == "the selected checkpoint":
        assert [row["which"] for row in rows(run, "test")] == ["final"]


def test_a_signal_in_the_final_test_interrupts_and_a_resumed_run_tests_again(ended, at_forward, tmp_path):
    calls = []

    def stop():
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    done = ended(lambda: at_forward(stop))
    assert done.code == 130, done.err
    run = tmp_path / "run"
    assert (status(run)["state"], status(run)["signal"], status(run)["step"]) == ("interrupted", 2, 8)
    assert rows(run, "test") == []
    assert "interrupted at step 8; to go on: " in done.out
    run_main("resume=run").succeeded()
    assert notes(run) == []
    assert sorted(row["which"] for row in rows(run, "test")) == ["final", "selected"]
    assert len(rows(run, "eval")) == 1
    (newest,) = {m.global_step for m in listing.manifests(run / "checkpoints") if m.tier == "training"}
    assert newest == 8


@pytest.mark.parametrize("times", [1, 2])
def test_a_signal_in_the_report_leaves_the_run_finished(ended, tmp_path, monkeypatch, times):
    def interrupted(*_, **__):
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(tables, "print_report", interrupted)
    assert ended(lambda: None).code == 130
    assert notes(tmp_path / "run") == []
    assert json.loads((tmp_path / "run" / "status.json").read_text())["reason"] == "all epochs are done"


@pytest.mark.parametrize("wrong", ["package", "file"])
def test_tensorboard_that_cannot_write_is_refused_before_anything_begins(train, tmp_path, monkeypatch, wrong):
    base = [o for o in TINY if not o.startswith("logger")] + ["max_steps=2", "hydra.run.dir=run"]
    typed = base
    if wrong == "package":
        for name in [n for n in sys.modules if n.startswith("tensorboard")]:
            monkeypatch.delitem(sys.modules, name)
        (tmp_path / "tensorboard").mkdir()
        (tmp_path / "tensorboard" / "__init__.py").write_text("raise AttributeError('np.bool8')")
        monkeypatch.syspath_prepend(tmp_path)
    else:
        assert train(*base, "logger=[console]").code == 0
        (tmp_path / "run" / "tensorboard").write_text("")
        typed = ["resume=run", "logger=[console,tensorboard]", "max_steps=4"]
    before = sorted((tmp_path / "run").rglob("*"))
    err = train(*typed).refusal()
    assert err.startswith("error: TensorBoard ")
    assert err.endswith(": correct that, or add logger=[console].\n")
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert wrong == "package" or status(tmp_path / "run")["state"] == "finished"


def test_without_matplotlib_the_page_has_its_tables_and_names_the_extra(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train(*TINY, "max_steps=2", "report=true", "hydra.run.dir=run").succeeded()
    written = (tmp_path / "run" / "report.html").read_text()
    assert "peakpoint[report]" in written
    assert "best epoch" in written
    assert "<svg" not in written


LOSS = ("checkpoint.monitor.metric=loss", "checkpoint.monitor.mode=min")


@pytest.mark.parametrize(("pruning", "chosen"), [("pruning.target=0", 1), ("pruning.end_step=12", 2)])
def test_the_best_of_all_is_tested_and_of_a_pruned_network_the_best_at_the_target(
    train, tmp_path, pruning, chosen
):
    """The second epoch makes every network worse, and is the one that reaches the target."""
    train(*TINY, *LOSS, "epochs=2", "max_steps=8", pruning, "test=false", "hydra.run.dir=run").succeeded()
    train("resume=run", "max_steps=null", "optimizer.lr=5", "test=true").succeeded()
    first, second = (row["metrics"]["loss"] for row in rows(tmp_path / "run", "eval"))
    assert second > 1.5 * first
    tested = {row["which"]: row for row in rows(tmp_path / "run", "test")}
    assert (tested["final"]["epoch"], tested["selected"]["epoch"]) == (2, chosen)
    same = tested["final"]["metrics"] == tested["selected"]["metrics"]
    assert same == (chosen == 2)
    assert f"_epoch_{chosen:04d}" in tested["selected"]["file"]
