"""The results of several runs: each run's, and means over seeds."""

import csv
import json
import math
import os
import shutil
import statistics
from dataclasses import replace

import pytest

from peakpoint.base.errors import UserError
from peakpoint.commands.dispatch import main
from peakpoint.trainer.reports import study
from peakpoint.trainer.reports.study_table import duration, write_csv
from tests.conftest import rows, status
from tests.trainer.reports.test_report import ROWS, written


def result(path, seed, value, *words, state="finished", mode="max"):
    values = dict(word.split("=") for word in (*words, f"seed={seed}"))
    return study.Result(
        run=path / f"{'-'.join(words)}-{seed}",
        overrides=(*words, f"seed={seed}"),
        values=values,
        state=state,
        metric="accuracy" if mode == "max" else "loss",
        mode=mode,
        seed=seed,
        objective=value,
    )


def test_a_result_is_what_the_run_wrote(pruned_run):
    found = study.read_result(pruned_run)
    evals = rows(pruned_run, "eval")
    reached = [e for e in evals if e["sparsity"] >= 0.7 - 1e-6]
    best = max(reached, key=lambda e: e["metrics"]["accuracy"])
    assert (found.state, found.metric, found.mode, found.target) == ("finished", "accuracy", "max", 0.7)
    assert found.at_target.best == found.objective == best["metrics"]["accuracy"]
    assert found.at_target.sparsity == best["sparsity"]
    assert found.overall.best == max(e["metrics"]["accuracy"] for e in evals)
    assert found.final == evals[-1]["metrics"]["accuracy"]
    assert (
        found.test
        == next(r for r in rows(pruned_run, "test") if r["which"] == "selected")["metrics"]["accuracy"]
    )
    assert (found.epochs, found.seed, found.values["optimizer"]) == (3, 0, "adamwprune")
    assert found.sparsity == evals[-1]["sparsity"]


def test_the_status_of_a_run_has_its_time_memory_and_objective(pruned_run):
    recorded, found = status(pruned_run), study.read_result(pruned_run)
    assert recorded["objective"] == found.objective
    assert recorded["seconds"] == found.seconds > 0
    assert 50e6 < recorded["peak_memory"] == found.peak_memory < 20e9


def test_the_time_of_a_resumed_run_has_that_of_its_earlier_attempts(pruned_run, train, tmp_path):
    run = shutil.copytree(pruned_run, tmp_path / "run")
    said = status(run) | {"seconds": 1000.0}
    (run / "status.json").write_text(json.dumps(said))
    assert train(f"resume={run}", "epochs=4").code == 0
    assert 1000 < status(run)["seconds"] < 1240
    last = json.loads(
        [line for line in (run / "metrics.jsonl").read_text().splitlines() if "eval" in line][-1]
    )
    assert 1000 < last["seconds"] <= status(run)["seconds"]


def test_of_a_killed_run_the_time_until_its_last_evaluation_counts(pruned_run, train, tmp_path):
    run = shutil.copytree(pruned_run, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [line | {"seconds": 500.0} if line["kind"] == "eval" else line for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "status.json").write_text(json.dumps({"state": "running"}))
    assert study.read_result(run).seconds == 500
    assert train(f"resume={run}", "epochs=4").code == 0
    assert 500 < status(run)["seconds"] < 740


def test_groups_differ_in_more_than_the_seed_and_the_best_mean_is_first(tmp_path):
    found = [
        *(result(tmp_path, seed, value, "optimizer=sgd") for seed, value in enumerate((0.5, 0.7, 0.6))),
        result(tmp_path, 0, 0.8, "optimizer=adamw"),
        result(tmp_path, 1, None, "optimizer=adamw", state="failed"),
        result(tmp_path, 0, None, "optimizer=adam", state="failed"),
    ]
    groups = study.grouped(found)
    assert [g.overrides for g in groups] == [("optimizer=adamw",), ("optimizer=sgd",), ("optimizer=adam",)]
    assert groups[0].spread("objective") == study.Spread(0.8, None, 1)
    spread = groups[1].spread("objective")
    assert (spread.mean, spread.sd, spread.n) == (
        pytest.approx(0.6),
        pytest.approx(statistics.stdev((0.5, 0.7, 0.6))),
        3,
    )
    assert groups[2].spread("objective") is None


@pytest.mark.parametrize(("mode", "best"), [("max", 0.9), ("min", 0.1)])
def test_the_best_objective_is_first_and_none_is_last(tmp_path, mode, best):
    found = [result(tmp_path, n, value, mode=mode) for n, value in enumerate((0.5, math.nan, 0.9, 0.1, None))]
    ordered = [r.objective for r in study.ranked(found)]
    assert ordered[0] == best
    assert math.isnan(ordered[3])
    assert ordered[4] is None


def test_a_running_job_whose_process_is_gone_was_killed(tmp_path):
    run = written(tmp_path, ROWS)
    held = {"state": "running", "host": os.uname().nodename, "pid": os.getpid()}
    (run / "status.json").write_text(json.dumps(held))
    assert study.read_result(run).state == "running"
    for pid, state in ((2**22 + 1, "killed"), (-1, "running"), (10**30, "running"), ("1", "running")):
        (run / "status.json").write_text(json.dumps({**held, "pid": pid}))
        assert study.read_result(run).state in (state, study.UNREADABLE)


def test_several_runs_are_a_table_with_means_over_seeds(pruned_run, tmp_path, capsys):
    folder = tmp_path / "sweep"
    for seed in range(3):
        run = shutil.copytree(pruned_run, folder / str(seed), ignore=shutil.ignore_patterns("checkpoints"))
        record = json.loads((run / "run.json").read_text())
        record["attempts"][-1]["overrides"] += [f"seed={seed}"]
        (run / "run.json").write_text(json.dumps(record))
    (folder / "3").mkdir()
    (folder / "3" / "status.json").write_text('{"state": "failed", "error": "no \\u001b[31mroom"}')
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.count("finished") == 3
    assert "3 failed: no \\x1b[31mroom" in out
    assert " ± 0.00%" in out
    table = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["seed"] for row in table] == ["0", "1", "2", ""]
    assert float(table[0]["objective"]) == study.read_result(pruned_run).objective
    assert table[3]["state"] == "failed"
    assert main(["report", str(folder), str(folder / "0"), str(pruned_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["results"]) == 5
    assert [group["objective"]["n"] for group in found["groups"] if group["objective"]] == [4]


def test_a_cell_that_a_spreadsheet_would_run_is_text(tmp_path):
    harmful = replace(result(tmp_path, 0, 0.5), note="=cmd|'/c calc'!A0", values={"lr": "-1", "name": "@x"})
    write_csv(tmp_path / "table.csv", [harmful])
    [row] = csv.DictReader((tmp_path / "table.csv").open())
    assert (row["note"], row["lr"], row["name"]) == ("'=cmd|'/c calc'!A0", "-1", "'@x")


@pytest.mark.parametrize("argument", ["there is none", "empty"])
def test_a_folder_without_runs_is_one_line(tmp_path, argument, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / argument)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError):
        study.read_results([tmp_path / argument])


def test_a_time_for_people():
    assert [duration(s) for s in (0.04, 99.9, 100, 3599.6, 90_061)] == [
        "0.0 s",
        "99.9 s",
        "0:01:40",
        "1:00:00",
        "25:01:01",
    ]
