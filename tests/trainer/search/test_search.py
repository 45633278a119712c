"""Searches with the real Optuna: chosen, stopped, killed and continued."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from peakpoint.commands.dispatch import main
from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.study import read_results
from peakpoint.trainer.search import trials
from peakpoint.trainer.sweep import record
from tests.conftest import ROOT, TINY, command, status

optuna = pytest.importorskip("optuna")

RATES = "optimizer.lr=tag(log,interval(1e-4,1e-1))"
SEARCH = (*TINY, "-m", "optimizer=sgd", "hydra.sweep.dir=S", "checkpoint/policy=[interval,best]")


def study(folder):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.load_study(study_name=folder.name, storage=f"sqlite:///{folder / 'study.db'}")


def states(folder):
    return [trial.state.name for trial in study(folder).trials]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("search=tpe",), "A search needs a space"),
        (("search=tpe", "optimizer.lrr=interval(0,1)"), "optimizer.lrr"),
        (("search=tpe", "optimizer=sgd,adamx"), "adamx"),
        (("search=tpe", "optimizer.lr=interval(-1,1)"), "would be refused: optimizer.lr=-1"),
        (("search=tpe", "search.sampler=tpee", RATES), "search.sampler"),
        (("search=tpf", RATES), "tpf"),
        (("search=tpe", "search.trials=null", RATES), "give a number of trials"),
        (("search=grid", RATES), "lists no values for a grid"),
        (("search=tpe", "search.storage=nosuch://x", RATES), "search.storage=nosuch://x cannot be used"),
        (("search=tpe", "hydra/launcher=joblib", RATES), "leave out hydra/launcher"),
    ],
)
def test_a_wrong_search_is_one_line_and_writes_nothing(train, words, sentence):
    done = train(*SEARCH, *words)
    assert done.code == 1
    assert sentence in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


def test_a_search_without_m_is_refused(train):
    done = train(*TINY, "search=tpe")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "add -m" in done.err


def test_without_optuna_the_extra_is_named(train, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = train(*SEARCH, "search=tpe", RATES)
    assert done.err == "error: search= needs Optuna: pip install 'peakpoint[search]'.\n"


def test_a_search_without_room_does_not_begin(train, tmp_path, monkeypatch):
    monkeypatch.setattr("peakpoint.trainer.sweep.storage.free_room", lambda path: (1_500_000, None))
    done = train(*SEARCH, "search=tpe", "search.trials=100", RATES)
    assert done.code == 1
    assert done.err.startswith("error: This sweep stores at least ")
    assert list(tmp_path.iterdir()) == []


def test_a_trial_that_diverged_is_a_pruned_one(train, tmp_path):
    bound = "checkpoint.policy.early_stopping.diverged_at=1.0"
    assert train(*TINY, "epochs=2", "pruning=none", "optimizer=sgd", bound, "hydra.run.dir=0").code == 0
    made = optuna.create_study()
    made.ask()
    outcome = trials.conclude(made, 0, tmp_path / "0")
    assert outcome == status(tmp_path / "0")["reason"]
    assert outcome.startswith("diverged at epoch 1: accuracy ")
    assert made.trials[0].state.name == "PRUNED"


@pytest.mark.slow
def test_a_failed_trial_is_tried_again_in_its_directory_only_when_asked(train, tmp_path):
    words = (
        *SEARCH,
        "epochs=1",
        "search=grid",
        "search.trials=1",
        "seed=1,2",
        "data=npz",
        "data.root=images",
    )
    shape = [word for word in TINY if word.startswith("data")]
    words = tuple(word for word in words if word not in shape)
    assert train(*words).code == 1
    folder = tmp_path / "S"
    assert states(folder) == ["FAIL"]
    found = record.read(folder)
    assert found["state"] == "failed"
    assert all(job["error"].startswith("images/train.npz ") for job in found["jobs"])
    Path("images").mkdir()
    for split in ("train", "test"):
        np.savez(f"images/{split}.npz", images=np.zeros((40, 12, 12, 3), np.uint8), labels=np.arange(40) % 4)
    assert train("resume=S").code == 1
    assert states(folder) == ["FAIL"]
    done = train("resume=S", "retry_failed=true")
    assert done.code == 0, done.out
    assert states(folder) == ["FAIL", "COMPLETE"]
    assert "1 of 1 trials: 1 finished, 0 pruned, 0 failed" in done.out
    assert [path.parent.name for path in folder.glob("*/run.json")] == ["0"]
    found = record.read(folder)
    assert (found["state"], [job["state"] for job in found["jobs"]]) == ("finished", ["finished"])
    saved = folder / "0" / ".hydra" / "config.yaml"
    saved.write_text(saved.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    drifted = train("resume=S", "search.trials=2")
    assert drifted.code == 1
    assert re.match(r"error: job 0 in .*/S/0: label_smoothing was 0\.1 and is 0\.0 now", drifted.err)


@pytest.mark.slow
def test_a_grid_runs_every_combination_two_at_a_time_and_is_not_repeated(train, tmp_path):
    words = (*SEARCH, "epochs=1", "search=grid", "search.processes=2", "seed=1,2", "optimizer.lr=0.01,0.1")
    words = (*words, "report=true")
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "S"
    results = read_results([folder])
    assert [(r.values["seed"], r.values["optimizer.lr"]) for r in results] == [
        ("1", "0.01"), ("1", "0.1"), ("2", "0.01"), ("2", "0.1"),
    ]  # fmt: skip
    assert "4 finished" in (folder / "report.html").read_text()
    assert states(folder) == ["COMPLETE"] * 4
    assert [trial.value for trial in study(folder).trials] == [r.objective for r in results]
    assert "4 of 4 trials: 4 finished, 0 pruned, 0 failed" in done.stdout
    started = [run_record.read_run(folder / str(n))["attempts"][0]["started"] for n in range(4)]
    ended = status(folder / "0")["time"]
    assert datetime.fromisoformat(started[1]) < datetime.fromisoformat(ended)
    recorded = record.read(folder)
    assert [job["state"] for job in recorded["jobs"]] == ["finished"] * 4
    assert [job["objective"] for job in recorded["jobs"]] == [r.objective for r in results]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    assert train(*words).code == 0
    assert states(folder) == ["COMPLETE"] * 4
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}
    other = train(*words, "batch_size=8")
    assert other.code == 1
    assert "holds a search whose overrides" in other.err
    space = train(*words[:-1], "optimizer.lr=0.01,0.2")
    assert (space.code, space.err.count("\n")) == (1, 1)
    assert "holds a search whose space" in space.err
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.pt")}


@pytest.mark.slow
def test_a_search_killed_in_the_middle_goes_on_and_a_bad_trial_is_stopped(train, tmp_path):
    words = [
        *SEARCH, "epochs=2", "search=tpe", "search.processes=2", "search.trials=7",
        "search.startup_trials=2",
        "search.from_epoch=0", "optimizer.lr=tag(log,interval(1e-7,1e-1))", "checkpoint.interval_steps=1",
        "checkpoint.monitor={metric:loss,mode:min}", "checkpoint/policy=[interval]",
    ]  # fmt: skip
    folder = tmp_path / "S"
    search = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    trained = folder / "2" / "checkpoints" / "training" / "latest.pt"
    deadline = time.monotonic() + 120
    while not trained.exists():
        assert time.monotonic() < deadline
        assert search.poll() is None
        time.sleep(0.05)
    search.kill()
    search.wait()
    for run in folder.glob("*/status.json"):  # the trials have sessions of their own
        found = run_record.read_json(run)
        if found["state"] == "running":
            os.kill(found["pid"], signal.SIGKILL)
    before = states(folder)
    assert "RUNNING" in before
    done = command("resume=S", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert len(states(folder)) == 7
    assert set(states(folder)) == {"COMPLETE", "PRUNED"}
    ended = [n for n, state in enumerate(before) if state in ("COMPLETE", "PRUNED")]
    attempts = [len(run_record.read_run(folder / str(n))["attempts"]) for n in range(7)]
    assert all(attempts[n] == 1 for n in ended)
    assert max(attempts) == 2
    drawn = [trial.params["optimizer.lr"] for trial in study(folder).trials]
    assert len(set(drawn)) == 7  # a sampler made anew draws no trial again
    pruned = states(folder).index("PRUNED")
    assert status(folder / str(pruned))["reason"].startswith("pruned by the search: loss")
    assert main(["report", str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert f"{states(folder).count('PRUNED')} pruned" in text
    assert re.search(
        r"Pruned by the search</h2>.*in epoch 1, step 8, is behind other trials", text, re.DOTALL
    )
    checked = command("verify", f"S/{pruned}", cwd=tmp_path, module="peakpoint")
    assert checked.returncode == 0, checked.stderr
    resumed = train(f"resume=S/{pruned}", "epochs=3")
    assert resumed.code == 0, resumed.err
    assert status(folder / str(pruned))["epoch"] == 3


@pytest.mark.slow
def test_ctrl_c_saves_the_trial_and_prints_the_command_that_goes_on(tmp_path):
    words = [*SEARCH, "epochs=200", "search=random", "search.trials=1", RATES]
    search = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder = tmp_path / "S"
    deadline = time.monotonic() + 120
    while not (folder / "0" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    search.send_signal(signal.SIGINT)
    out, _ = search.communicate(timeout=120)
    assert search.returncode == 128 + signal.SIGINT
    assert status(folder / "0")["state"] == "interrupted"
    assert states(folder) == ["RUNNING"]
    assert "To go on: python" in out
    assert out.rstrip().endswith("resume=S")
