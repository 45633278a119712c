"""The trainer as a whole on a disk that fills up, and with folders that are removed while it runs."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import pytest

from peakpoint.checkpointing.storage import listing, store
from peakpoint.trainer.loop import Loop
from tests.conftest import ROOT, TINY, rows, run_main, status
from tests.faults.fault_cases import mounted, tidy

RUN = (
    *[o for o in TINY if not o.startswith(("logger", "log_every", "report", "checkpoint/policy"))],
    "log_every=1",
    "checkpoint/policy=[best,interval,sparsity]",
    "checkpoint.interval_steps=4",
    "checkpoint.keep_last=100",
    "checkpoint.background=false",  # so that the mishap falls between two saves
)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same run of 24 steps, in three epochs, on a disk with room."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_main(*RUN, f"hydra.run.dir={run}").code == 0
    return run


@pytest.fixture
def train_with(monkeypatch):
    """The real trainer with a mishap before some of its steps: {step: what happens}."""

    def train(mishaps, *options):
        real = Loop._step

        def step(self, images, labels):
            mishaps.get(self.state.progress.step + 1, lambda: None)()
            real(self, images, labels)

        monkeypatch.setattr(Loop, "_step", step)
        done = run_main(*options)
        monkeypatch.undo()
        assert "Traceback" not in done.out + done.err
        assert "Logging error" not in done.err
        return done

    return train


def fill(disk):
    """Another program's file takes what is left, to the last byte."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def use_up_inodes(disk):
    with contextlib.suppress(OSError):
        for number in range(10**6):
            (disk / f"filler_{number}").touch()


def make_room(disk):
    for filler in disk.glob("filler*"):
        filler.unlink()


def verified(run):
    """The steps whose checkpoints verify, each once; none is damaged and nothing lies about."""
    found = listing.manifests(run / "checkpoints")
    for manifest in found:
        store.verify(run / "checkpoints", manifest)
    assert tidy(run / "checkpoints")
    return sorted({m.global_step for m in found})


def lines(run):
    """The rows of metrics.jsonl, every one of them whole."""
    text = (run / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


EXHAUSTED = {
    "bytes": ("-t tmpfs -o size=24m tmpfs", fill),
    "inodes": ("-t tmpfs -o size=24m,nr_inodes=150 tmpfs", use_up_inodes),
}


@pytest.fixture(params=EXHAUSTED)
def disk(request, tmp_path):
    """A small disk, and how to exhaust it."""
    options, exhaust = EXHAUSTED[request.param]
    with mounted(tmp_path / "disk", options) as disk:
        yield disk, lambda: exhaust(disk)


@pytest.mark.root
def test_a_disk_that_fills_up_does_not_end_the_training(disk, train_with, undisturbed):
    disk, exhaust = disk
    run = disk / "run"
    done = train_with({11: exhaust}, *RUN, f"hydra.run.dir={run}").succeeded()
    assert "Training continues; older checkpoints are intact." in done.out
    assert "training ended at epoch 3, step 24: all epochs are done" in done.out
    assert verified(run) == [4, 8]
    assert "status.json could not be written: No space left on device" in done.out
    assert status(run)["state"] == "running"
    whole = [row for row in lines(run) if row["kind"] == "train"]
    assert whole == [row | {"images_per_second": w["images_per_second"]} for row, w in
                     zip(rows(undisturbed, "train"), whole, strict=False)]  # fmt: skip
    make_room(disk)
    run_main(f"resume={run}").succeeded()
    assert status(run)["state"] == "finished"
    assert rows(run, "train", "eval") == rows(undisturbed, "train", "eval")


@pytest.mark.root
def test_when_there_is_room_again_nothing_of_the_record_is_missing(disk, train_with, undisturbed):
    disk, exhaust = disk
    run = disk / "run"
    train_with({11: exhaust, 19: lambda: make_room(disk)}, *RUN, f"hydra.run.dir={run}").succeeded()
    assert rows(run, "train", "eval") == rows(undisturbed, "train", "eval")
    assert [r["which"] for r in lines(run) if r["kind"] == "test"] == ["final", "selected"]
    assert {4, 8, 20, 24} <= set(verified(run))
    assert status(run)["state"] == "finished"
    assert (run / "report.html").exists()
    log = (run / "train.log").read_text()
    assert "epoch 2 step 16 validation: accuracy" in log
    assert "No space left on device" in log
    assert tensorboard_steps(run) == [row["step"] for row in rows(undisturbed, "train")]


def tensorboard_steps(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return [scalar.step for scalar in found.Scalars("train/loss")]


@pytest.mark.root
def test_asked_to_stop_it_stops_with_one_line(disk, train_with):
    disk, exhaust = disk
    run = disk / "run"
    done = train_with({11: exhaust}, *RUN, f"hydra.run.dir={run}", "checkpoint.on_error=stop").failed()
    (line,) = done.err.splitlines()
    assert line.startswith(
        f"error: A checkpoint could not be written to {run / 'checkpoints'}: No space left"
    )
    assert line.endswith("Older checkpoints are intact.")
    assert verified(run) == [4, 8]
    lines(run)


@pytest.mark.root
def test_checkpoints_and_output_that_fill_the_disk_themselves(tmp_path):
    """A process of its own, whose console is a file on the same disk."""
    with mounted(tmp_path / "disk", "-t tmpfs -o size=3m tmpfs") as disk:
        run = disk / "run"
        with (disk / "console.txt").open("w") as console:
            done = subprocess.run(
                [sys.executable, str(ROOT / "train.py"), *RUN, "checkpoint.interval_steps=1",
                 "checkpoint.background=true", f"hydra.run.dir={run}"],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=console,
                stderr=subprocess.PIPE,
                text=True,
                timeout=240,
                check=False,
            )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert "Training continues; older checkpoints are intact." in (disk / "console.txt").read_text()
        assert len(verified(run)) > 3
        lines(run)


def test_checkpoints_that_are_removed_while_it_runs(tmp_path, train_with, undisturbed):
    run = tmp_path / "run"
    done = train_with(
        {11: lambda: shutil.rmtree(run / "checkpoints")}, *RUN, f"hydra.run.dir={run}"
    ).succeeded()
    assert done.out.count("was removed, with what was in it: it is made again.") == 1
    assert verified(run)[-4:] == [12, 16, 20, 24]
    assert rows(run, "train", "eval") == rows(undisturbed, "train", "eval")


@pytest.mark.parametrize("on_error", ["warn", "stop"])
def test_checkpoints_that_are_in_the_way_of_themselves(tmp_path, train_with, on_error):
    """Where the folder was there is a file: it cannot be made again."""
    run = tmp_path / "run"

    def harm():
        shutil.rmtree(run / "checkpoints")
        (run / "checkpoints").write_text("of the user")

    done = train_with({11: harm}, *RUN, f"hydra.run.dir={run}", f"checkpoint.on_error={on_error}")
    assert (run / "checkpoints").read_text() == "of the user"
    if on_error == "warn":
        assert done.code == 0, done.err
        assert status(run)["state"] == "finished"
        assert "Not a directory" in done.out
        assert "no checkpoint was kept as the best" in done.out
    else:
        assert done.code == 1
        (line,) = done.err.splitlines()
        assert "Not a directory" in line
        assert status(run)["state"] == "failed"


def test_a_run_directory_that_is_removed_while_it_runs(tmp_path, train_with):
    run = tmp_path / "run"
    done = train_with({11: lambda: shutil.rmtree(run)}, *RUN, f"hydra.run.dir={run}")
    assert "metrics.jsonl cannot be written: " in done.out
    assert done.refusal().startswith(f"error: {run} is not there any more")
    assert not run.exists()


@pytest.mark.root
def test_a_directory_that_cannot_be_written_is_reported_before_training(tmp_path, train_with):
    with mounted(tmp_path / "disk", "-t tmpfs -o ro tmpfs") as disk:
        done = train_with({1: lambda: pytest.fail("trained")}, *RUN, f"hydra.run.dir={disk / 'run'}").failed()
        (line,) = done.err.splitlines()
        assert line.startswith("error: ")
        assert "Read-only file system" in line
