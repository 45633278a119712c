"""A sweep: its record, how it goes on, and what it refuses before its first job."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from peakpoint.base.lock import one_writer
from peakpoint.trainer import run as run_module
from peakpoint.trainer.reports.study import grouped, read_results
from peakpoint.trainer.sweep import job as job_module
from peakpoint.trainer.sweep import record
from tests.conftest import ROOT, TINY, process, run_main, status

SWEEP = ("-m", *TINY, "epochs=1", "test=false", "hydra.sweep.dir=sweep")


def recorded(folder):
    return json.loads((folder / "sweep.json").read_text())


def states(folder):
    return [job["state"] for job in recorded(folder)["jobs"]]


def attempts(job):
    return json.loads((job / "run.json").read_text())["attempts"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished sweep of two jobs, and what each returned to Hydra."""
    place, returned = tmp_path_factory.mktemp("finished"), []
    run_job = job_module.run_job

    def noting(*arguments, **named):
        returned.append(run_job(*arguments, **named))
        return returned[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(job_module, "run_job", noting)
        done = run_main(*SWEEP, "seed=1,2")
    assert done.code == 0, done.err
    return place, returned


@pytest.fixture
def swept(finished, tmp_path, monkeypatch):
    """A copy of that sweep, in the directory of its command."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished[0] / "sweep", tmp_path / "sweep", symlinks=True)


@pytest.fixture
def fails(monkeypatch):
    """Let the run of a seed end with an exception, or with an exit code."""
    run, ends = run_module.run, {}

    def failing(config, cfg, plan, directory):
        end = ends.get(config.seed, 0)
        if isinstance(end, Exception):
            raise end
        return end or run(config, cfg, plan, directory)

    monkeypatch.setattr(run_module, "run", failing)
    return ends


def test_a_sweep_records_its_jobs_and_returns_their_objectives(finished):
    place, returned = finished
    found = recorded(place / "sweep")
    assert (found["format"], found["state"], found["launcher"]) == (1, "finished", "basic")
    assert found["objective"] == {"metric": "accuracy", "mode": "max"}
    assert found["command"].endswith("hydra.sweep.dir=sweep seed=1,2")
    assert [(job["number"], job["directory"], job["state"]) for job in found["jobs"]] == [
        (0, "0", "finished"),
        (1, "1", "finished"),
    ]
    objectives = [status(place / "sweep" / job)["objective"] for job in "01"]
    assert [job["objective"] for job in found["jobs"]] == returned == objectives
    table = list(csv.DictReader((place / "sweep" / "table.csv").open()))
    assert sorted(row["seed"] for row in table) == ["1", "2"]


def test_the_page_is_written_as_jobs_end_and_its_failure_is_one_line(train, tmp_path, monkeypatch):
    shown = []
    write_study = record.page.write_study

    def failing_once(results, folder):
        shown.append([result.state for result in results])
        if len(shown) == 1:
            raise RuntimeError("no chart")
        return write_study(results, folder)

    monkeypatch.setattr(record.page, "write_study", failing_once)
    done = train(*SWEEP, "seed=1,2", "epochs=1", "report=true")
    assert done.code == 0, done.err
    assert shown == [["finished"], ["finished"] * 2, ["finished"] * 2]
    assert "Report: sweep/report.html" in done.out
    assert "2 finished" in (tmp_path / "sweep" / "report.html").read_text()
    assert "report.html: RuntimeError: no chart" in done.out


def test_a_sweep_of_runs_without_a_report_has_none(finished):
    assert record.write_page(finished[0] / "sweep") is None
    assert not (finished[0] / "sweep" / "report.html").exists()


@pytest.mark.parametrize("again", [(*SWEEP, "seed=1,2"), ("resume=sweep",), ("-m", "resume=sweep")], ids=len)
def test_finished_jobs_are_not_run_again(swept, again):
    before = [(swept / job / "run.json").read_bytes() for job in "01"]
    done = run_main(*again)
    assert (done.code, done.err) == (0, "")
    assert [(swept / job / "run.json").read_bytes() for job in "01"] == before
    assert states(swept) == ["finished"] * 2


def test_a_sweep_takes_more_jobs_after_those_that_it_has(swept):
    done = run_main(*SWEEP, "seed=1,2,3")
    assert done.code == 0, done.err
    assert states(swept) == ["finished"] * 3
    assert [len(attempts(swept / job)) for job in "012"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["seed=1"], "holds a sweep of 2 jobs, and this command has 1"),
        (["seed=2,1"], "holds a sweep whose job 0 is"),
        (["seed=1,2", "batch_size=8"], "holds a sweep whose job 0 is"),
    ],
    ids=str,
)
def test_another_sweep_does_not_go_on_with_this_one(swept, typed, sentence):
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*")}
    done = run_main(*SWEEP, *typed)
    assert done.code == 1
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in swept.rglob("*")} == before


def test_a_job_whose_configuration_has_changed_is_refused_before_anything_runs(swept):
    saved = swept / "1" / ".hydra" / "config.yaml"
    saved.write_text(saved.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    shutil.rmtree(swept / "0")
    done = run_main("resume=sweep")
    assert done.code == 1
    assert re.match(r"error: job 1 in .*/sweep/1: label_smoothing was 0\.1 and is 0\.0 now", done.err)
    assert not (swept / "0").exists()
    assert run_main("resume=sweep", "accept_drift=true").code == 0
    assert states(swept) == ["finished"] * 2


def test_a_failed_job_is_tried_again_only_when_asked(train, fails, tmp_path):
    fails[1] = RuntimeError("no power")
    done = train(*SWEEP, "seed=1,2")
    assert done.code == 1
    assert states(tmp_path / "sweep") == ["failed", "finished"]
    assert "0 failed: RuntimeError: no power" in done.out
    command = re.search(r"To try failed jobs again: python train\.py (.*)", done.out)[1].split()
    fails.clear()
    assert train("resume=sweep").code == 1
    assert states(tmp_path / "sweep") == ["failed", "finished"]
    assert train(*command).code == 0
    assert states(tmp_path / "sweep") == ["finished"] * 2
    assert [len(attempts(tmp_path / "sweep" / job)) for job in "01"] == [1, 1]


def test_a_failed_job_returns_nan(train, fails, monkeypatch):
    returned = []
    run_job = job_module.run_job
    monkeypatch.setattr(
        job_module, "run_job", lambda *a, **k: returned.append(run_job(*a, **k)) or returned[-1]
    )
    fails[1] = RuntimeError("no power")
    assert train(*SWEEP, "seed=1").code == 1
    assert list(map(math.isnan, returned)) == [True]


def test_a_signal_ends_the_sweep_and_the_command_that_goes_on_is_printed(train, fails, tmp_path):
    fails[2] = 128 + signal.SIGTERM
    done = train(*SWEEP, "seed=1,2,3")
    assert done.code == 128 + signal.SIGTERM
    assert states(tmp_path / "sweep") == ["finished", "pending", "pending"]
    assert recorded(tmp_path / "sweep")["state"] == "interrupted"
    command = re.search(r"2 of 3 jobs are not finished; to go on: python train\.py (.*)", done.out)[1].split()
    fails.clear()
    assert train(*command).code == 0
    assert states(tmp_path / "sweep") == ["finished"] * 3


def test_a_job_that_diverged_is_in_the_table_and_in_no_mean(train, tmp_path):
    bound = "checkpoint.policy.early_stopping.diverged_at"
    done = train(*SWEEP, "epochs=2", "pruning=none", "optimizer=sgd", f"{bound}=0.0,1.0")
    assert done.code == 0, done.err
    assert states(tmp_path / "sweep") == ["finished", "diverged"]
    assert recorded(tmp_path / "sweep")["state"] == "finished"
    reason = status(tmp_path / "sweep" / "1")["reason"]
    assert re.fullmatch(r"diverged at epoch 1: accuracy .* has reached diverged_at=1", reason)
    assert f"\n1 {reason}\n" in done.out
    assert [len(attempts(tmp_path / "sweep" / job)) for job in "01"] == [1, 1]
    assert [group.spread("overall") is None for group in grouped(read_results([tmp_path / "sweep"]))] == [
        False, True,
    ]  # fmt: skip
    assert train("resume=sweep", "retry_failed=true").code == 0
    assert [len(attempts(tmp_path / "sweep" / job)) for job in "01"] == [1, 1]


def test_two_processes_do_not_run_one_sweep(swept):
    with one_writer(swept):
        before = {path: path.stat().st_mtime_ns for path in swept.rglob("*")}
        done = run_main("resume=sweep")
        assert done.code == 1
        assert "is being written by process" in done.err
        assert {path: path.stat().st_mtime_ns for path in swept.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": 2}, "is of a format that this version does not read"),
        ({"overrides": "seed=1"}, "overrides is not what is written there"),
        ({"overrides": ["hydra.callbacks.x=1"]}, "is not an override of a run"),
        ({"overrides": ["experiment=../x,../y"]}, "is not an override of a run"),
        ({"overrides": ["seed=range(0,1000000000000)"]}, "is not an override of a run"),
        ({"overrides": ["plugins=[evil]"]}, "add 'plugins=[evil]' to the command"),
        ({"overrides": ["seed=range(0,1000)", "epochs=range(1,1000)"]}, "which are too many for a run"),
        (
            {"overrides": [f"{key}=range(1,90)" for key in ("seed", "epochs", "log_every")]},
            "704969 jobs are too many for one sweep",
        ),
        ({"jobs": [{"number": 0, "directory": "../x", "overrides": []}]}, "directory is not what is written"),
        ({"jobs": [{"number": 7, "directory": "7", "overrides": []}]}, "jobs is not what is written there"),
        ({"jobs": 5}, "jobs is not what is written there"),
    ],
    ids=str,
)
def test_a_record_of_a_stranger_is_one_line(swept, change, sentence):
    (swept / "sweep.json").write_text(json.dumps(recorded(swept) | change))
    done = run_main("resume=sweep")
    assert done.code == 1
    assert sentence in done.err
    assert done.err.count("\n") == 1


def test_a_record_that_is_behind_is_brought_up_to_the_jobs(swept):
    found = recorded(swept)
    found["jobs"][1] |= {"state": "pending", "objective": None}
    (swept / "sweep.json").write_text(json.dumps(found))
    assert run_main("resume=sweep").code == 0
    assert states(swept) == ["finished"] * 2


@pytest.mark.slow
def test_killed_twice_a_sweep_ends_as_if_it_had_not_been(tmp_path):
    """The whole process is killed with SIGKILL while a job trains; its checkpoint is gone on with."""
    longer = ("epochs=40", "data.train_size=1440", "checkpoint.interval_steps=20")
    words = (*TINY, "test=false", *longer, "seed=1,2")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for job in "01":
        command = [sys.executable, ROOT / "train.py", "-m", *words, "hydra.sweep.dir=sweep"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as sweep:
            ends = time.monotonic() + 120
            while not list((tmp_path / "sweep" / job).glob("checkpoints/training/*.json")):
                assert sweep.poll() is None
                assert time.monotonic() < ends
                time.sleep(0.02)
            sweep.send_signal(signal.SIGKILL)
        assert status(tmp_path / "sweep" / job)["state"] == "running"
    done = process(ROOT / "train.py", "resume=sweep", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert states(tmp_path / "sweep") == ["finished"] * 2
    assert [len(attempts(tmp_path / "sweep" / job)) for job in "01"] == [2, 2]
    assert all(attempts(tmp_path / "sweep" / job)[1]["resumed_from"] for job in "01")
    whole = process(ROOT / "train.py", "-m", *words, "hydra.sweep.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    found = [[job["objective"] for job in recorded(tmp_path / name)["jobs"]] for name in ("sweep", "whole")]
    assert found[0] == found[1]


def test_a_sweep_without_room_does_not_begin(train, tmp_path, monkeypatch):
    monkeypatch.setattr("peakpoint.trainer.sweep.storage.free_room", lambda path: (150_000, None))
    done = train(*SWEEP, "seed=1,2")
    assert done.code == 1
    assert re.match(
        r"error: This sweep stores at least .* and 150\.0 kB are free in sweep: make room", done.err
    )
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("peakpoint.trainer.sweep.storage.free_room", lambda path: (1_500_000, None))
    done = train(*SWEEP, "seed=1,2", "max_steps=1")
    assert done.code == 0, done.err
    assert "This sweep may store up to" in done.out


def test_a_named_sweep_trains_its_values_but_for_those_that_are_typed(train, tmp_path):
    done = train(*SWEEP, "sweep=optimizers", "max_steps=1", "optimizer=sgd,adam")
    assert done.code == 0, done.err
    words = [set(job["overrides"]) for job in recorded(tmp_path / "sweep")["jobs"]]
    expected = [{f"optimizer={name}", f"seed={seed}"} for name in ("sgd", "adam") for seed in (1, 2, 3)]
    assert [own <= found for own, found in zip(expected, words, strict=True)] == [True] * 6
    assert all("pruning.target=0.7" in found for found in words)


def test_a_named_sweep_needs_the_flag(train, tmp_path):
    done = train("sweep=seeds")
    assert (done.code, done.err) == (1, "error: sweep=seeds trains several runs: type -m sweep=seeds\n")
    assert list(tmp_path.iterdir()) == []
