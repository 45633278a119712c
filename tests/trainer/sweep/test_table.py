"""The table of a sweep: its jobs, each with its peak at the target."""

import shutil

from peakpoint.commands.dispatch import main
from tests.conftest import rows


def test_jobs_of_one_objective_stand_in_the_order_of_their_numbers(whole_run, tmp_path, capsys):
    for job in ("10", "2"):
        shutil.copytree(whole_run, tmp_path / job, ignore=shutil.ignore_patterns("checkpoints"))
    assert main(["report", str(tmp_path)]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines() if "finished" in line]
    assert [cells[0] for cells in table] == ["2", "10"]
    evals = rows(whole_run, "eval")
    reached = [e for e in evals if e["sparsity"] >= 0.7 - 1e-6]
    assert 0 < len(reached) < len(evals)
    best = max(reached, key=lambda e: e["metrics"]["accuracy"])
    test = next(r for r in rows(whole_run, "test") if r["which"] == "selected")
    overall = max(evals, key=lambda e: e["metrics"]["accuracy"])
    values = [best["metrics"], overall["metrics"], evals[-1]["metrics"], test["metrics"]]
    shown = [f"{metrics['accuracy']:.2%}" for metrics in values]
    assert [cells[2:9] for cells in table] == [["0.7", *shown, f"{evals[-1]['sparsity']:.2%}", "3"]] * 2
