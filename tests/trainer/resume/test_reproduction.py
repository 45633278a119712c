"""reproduce=RUN: bit for bit where it can be, and the first step that parts where it cannot."""

import json
import os
import shutil
import signal

import pytest

from peakpoint.checkpointing.events import StepEnd
from peakpoint.trainer.listeners.jsonl import JsonLines
from peakpoint.trainer.reports.comparison import compare
from tests.conftest import TINY, rows


def change_record(run, change):
    """Make the record of a run that of another machine, or of somebody else."""
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


def change_row(run, kind, step, change):
    """Change the row of metrics.jsonl of a kind and step."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [row] = [row for row in found if row["kind"] == kind and row["step"] == step]
    change(row)
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in found))


def report(run):
    return json.loads((run / "reproduction.json").read_text())


@pytest.fixture
def recorded(pruned_run, tmp_path):
    """A copy of a pruned run."""
    return shutil.copytree(pruned_run, tmp_path / "recorded", symlinks=True)


def test_a_pruned_run_is_reproduced_bit_for_bit(train, pruned_run, tmp_path):
    done = train(f"reproduce={pruned_run}", "hydra.run.dir=again")
    assert done.code == 0, done.err
    found = report(tmp_path / "again")
    assert found["same"]
    assert found["expected"]
    assert found["rows"] == {"train": 10, "eval": 3, "test": 2}
    assert found["digests"] == 3
    assert rows(tmp_path / "again", "eval") == rows(pruned_run, "eval")
    record = json.loads((tmp_path / "again" / "run.json").read_text())
    assert record["reproduces"]["directory"] == str(pruned_run)


def test_a_run_that_was_resumed_with_its_settings_is_reproduced_by_one_training(train, tmp_path):
    assert train(*TINY, "checkpoint.interval_steps=4", "hydra.run.dir=run").code == 0
    (middle,) = (tmp_path / "run" / "checkpoints" / "training").glob("*step_00000020*.pt")
    assert train(f"resume={middle}").code == 0
    assert len(json.loads((tmp_path / "run" / "run.json").read_text())["attempts"]) == 2
    done = train("reproduce=run", "hydra.run.dir=again")
    assert done.code == 0, done.err
    assert report(tmp_path / "again")["same"]


def test_a_run_whose_attempts_differ_is_refused_with_the_setting(train, tmp_path):
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0
    assert train("resume=run", "epochs=2").code == 0
    done = train("reproduce=run", "hydra.run.dir=again")
    assert done.code == 1
    assert "with epochs 2 instead of 1, so one training does not repeat it." in done.err
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record["packages"].update(torch="1.0"), "packages.torch was 1.0 and is"),
        (lambda record: record.update(git_commit="0" * 40), f"git_commit was {'0' * 40} and is"),
        (lambda record: record["data"].update(train_sha256="0"), "data.train_sha256 was 0 and is"),
        (lambda record: record["hardware"].update(cpu="Z80"), "hardware.cpu was Z80 and is"),
    ],
)
def test_what_differs_is_said_before_the_training(train, recorded, tmp_path, change, said):
    change_record(recorded, change)
    done = train("reproduce=recorded", "hydra.run.dir=again")
    assert done.code == 0, done.err
    assert said in done.out
    found = report(tmp_path / "again")
    assert found["same"]
    assert not found["expected"]


def test_of_another_system_or_an_earlier_version_results_can_still_be_equal(train, recorded, tmp_path):
    def change(record):
        record["python"] = "3.1"
        del record["hardware"]["cpu"]

    change_record(recorded, change)
    for step in (8, 16, 24):
        change_row(recorded, "eval", step, lambda row: row.pop("digests"))
    done = train("reproduce=recorded", "hydra.run.dir=again")
    assert done.code == 0, done.err
    assert "records no digests, so weights and batches were not compared" in done.out
    assert report(tmp_path / "again")["expected"]


def test_keys_that_decide_nothing_are_no_differences(train, pruned_run, tmp_path):
    free = ("checkpoint.compress=true", "logger=[]", "report=true", "hydra.run.dir=again")
    done = train(f"reproduce={pruned_run}", *free)
    assert done.code == 0, done.err
    found = report(tmp_path / "again")
    assert (found["same"], found["expected"], found["differences"]) == (True, True, [])


def test_a_run_that_ends_before_its_record_is_equal_so_far(train, tmp_path):
    dense = ("pruning=none", "optimizer=sgd", "scheduler=constant")
    assert train(*TINY, *dense, "hydra.run.dir=run").code == 0
    done = train("reproduce=run", "hydra.run.dir=again", "max_steps=12")
    assert done.code == 1
    assert "run is equal so far (5 train, 1 eval, 0 test)" in done.out
    assert "this run ends at step 12 of 24" in done.out
    found = report(tmp_path / "again")
    assert (found["same"], found["first"], found["steps"]) == (False, None, [24, 12])


def test_a_reproduction_that_was_interrupted_is_compared_at_its_later_end(
    train, recorded, tmp_path, monkeypatch
):
    write = JsonLines.__call__

    def interrupted(self, *events):
        write(self, *events)
        if any(isinstance(event, StepEnd) and event.step == 11 for event in events):
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(JsonLines, "__call__", interrupted)
        change_record(recorded, lambda record: record["hardware"].update(cpu="Z80"))
        assert train("reproduce=recorded", "hydra.run.dir=again").code == 128 + signal.SIGINT
    change_record(recorded, lambda record: record["hardware"].pop("cpu"))
    change_row(recorded, "train", 15, lambda row: row.update(loss=0.5))
    done = train("resume=again")
    assert done.code == 1
    found = report(tmp_path / "again")
    assert (found["same"], found["first"]["step"], found["expected"]) == (False, 15, False)
    assert "other than recorded: hardware.cpu" in done.out


def test_a_resumed_reproduction_reads_no_other_run(train, pruned_run, recorded, tmp_path):
    def change(record):
        record["reproduces"] = {"run": "x", "directory": str(pruned_run), "differences": 5}

    change_record(recorded, change)
    done = train("resume=recorded", "epochs=4")
    assert done.code == 0, done.err
    assert f"{pruned_run} holds another run than the one it reproduces" in done.out
    assert not (recorded / "reproduction.json").exists()


def test_the_first_step_that_parts_is_named(train, recorded, tmp_path):
    change_row(recorded, "train", 12, lambda row: row.update(lr=0.5))
    change_row(recorded, "eval", 16, lambda row: row["digests"].update(weights="blake3:0"))
    done = train("reproduce=recorded", "hydra.run.dir=again")
    assert done.code == 1
    assert "it parts from" in done.out
    assert "at step 12 (epoch 2): train lr was 0.5 and is" in done.out
    assert "equal results were to be expected" in done.out
    found = report(tmp_path / "again")
    assert (found["same"], found["first"]["step"]) == (False, 12)
    change_row(recorded, "train", 12, lambda row: row.pop("lr"))
    assert compare(recorded, tmp_path / "again").first.what == "eval digests.weights"


def test_a_setting_that_is_typed_is_a_difference_on_purpose(train, recorded, tmp_path):
    done = train("reproduce=recorded", "hydra.run.dir=again", "optimizer.lr=0.5")
    assert done.code == 1
    assert "changed on purpose: optimizer.lr" in done.out
    assert "other than recorded: optimizer.lr" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m",), "reproduce= repeats one run: leave out --multirun."),
        (("resume=recorded",), "leave out one of them."),
        (("hydra.run.dir=recorded",), "holds a run already"),
    ],
)
def test_a_command_that_is_no_reproduction_is_refused(train, recorded, words, said):
    done = train("reproduce=recorded", *words)
    assert done.code == 1
    assert said in done.err


@pytest.mark.parametrize(
    "override", ["hydra.callbacks.x._target_=os.system", "+x._target_=os.system", "experiment=../x"]
)
def test_a_record_of_a_stranger_only_chooses_and_sets(train, recorded, tmp_path, override):
    change_record(recorded, lambda record: record["attempts"][-1]["overrides"].append(override))
    done = train("reproduce=recorded", "hydra.run.dir=again")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert not (tmp_path / "again").exists()


def test_rows_of_a_stranger_are_passed_over(train, recorded, tmp_path):
    with (recorded / "metrics.jsonl").open("a") as file:
        file.write('5\n{"kind": ["eval"], "step": 1}\n{"kind": "eval", "step": "x"}\n{"kind": "test", "step"')
    assert train("reproduce=recorded", "hydra.run.dir=again").code == 0
