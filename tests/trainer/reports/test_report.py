"""The report, from files as a run writes them."""

import io
import json
import math
import re
import shlex

import pytest

from peakpoint.base.errors import UserError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.commands.dispatch import main
from peakpoint.trainer.reports.history import PeakRow, peak_rows, read_history
from peakpoint.trainer.reports.tables import print_report
from tests.conftest import Screen, process

NAN, INF = math.nan, math.inf


def evaluations(*rows):
    """EvalEnds of (accuracy, sparsity), one an epoch."""
    return [EvalEnd(e, e * 10, {"accuracy": a}, s, 0) for e, (a, s) in enumerate(rows, 1)]


def eval_row(epoch, accuracy, *, sparsity=0.0, loss=1.0):
    metrics = {"loss": loss, "accuracy": accuracy}
    return {
        "kind": "eval",
        "epoch": epoch,
        "step": epoch * 10,
        "metrics": metrics,
        "sparsity": sparsity,
        "mask_version": 0,
    }


def train_row(step, loss=1.0):
    return {"kind": "train", "epoch": 1, "step": step, "loss": loss, "lr": 0.1, "images_per_second": 5.0}


def written(run, rows, tail=""):
    """A run directory with these rows; returns it."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    config = {
        "pruning": {"target": 0.7},
        "checkpoint": {
            "monitor": {"metric": "accuracy", "mode": "max"},
            "policy": {"sparsity": {"targets": [0.5, 0.7]}, "interval": {"epochs": 1}},
        },
    }
    (run / "run.json").write_text(json.dumps({"config": config}))
    return run


ROWS = [
    train_row(5, 3.0),
    eval_row(1, 0.5, loss=2.0),
    train_row(15),
    eval_row(2, 0.8547, sparsity=0.5, loss=0.51239),
    eval_row(3, 0.8123, sparsity=0.7, loss=0.6),
    {"kind": "save", "file": "training/x.pt", "tags": ["interval"]},
    {"kind": "test", "which": "final", "epoch": 3, "step": 30, "metrics": {"accuracy": 0.8, "loss": "nan"}},
    {"kind": "test", "which": "selected", "epoch": 2, "step": 20, "metrics": {"accuracy": 0.84, "loss": 0.5}},
]


def manifest(run, stem, **values):
    """A kept checkpoint with its manifest on disk."""
    kept = Manifest(
        file=f"milestone/{stem}.pt",
        tier="milestone",
        tags=("best_accuracy",),
        policies=("best",),
        reasons=("accuracy 0.8547 beats 0.5000 of epoch 1",),
        run="run",
        epoch=2,
        global_step=20,
        metrics={"accuracy": 0.8547},
        sparsity=0.5,
        bytes=94_600_000,
        digest="0" * 64,
        **{"sequence": 1, **values},
    )
    path = run / "checkpoints" / kept.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    path.with_suffix(".json").write_text(kept.to_json())
    return kept


@pytest.mark.parametrize(
    ("mode", "values", "best_epoch", "best", "final", "degradation"),
    [
        ("max", [0.5, 0.9, 0.7], 2, 0.9, 0.7, 0.2),
        ("min", [0.5, 0.1, 0.7], 2, 0.1, 0.7, 0.6),
        ("max", [0.5, 0.9, 0.9], 2, 0.9, 0.9, 0.0),
        ("min", [0.5, 0.1, 0.1], 2, 0.1, 0.1, 0.0),
        ("max", [NAN, 0.1, INF, 0.05], 2, 0.1, 0.05, 0.05),
        ("min", [-INF, 0.1, 0.2], 2, 0.1, 0.2, 0.1),
        ("max", [0.0], 1, 0.0, 0.0, 0.0),
        ("max", [0.5, NAN], 1, 0.5, NAN, NAN),
    ],
)
def test_peak_against_final(mode, values, best_epoch, best, final, degradation):
    [row] = peak_rows(evaluations(*((v, 0.0) for v in values)), "accuracy", mode, [])
    assert (row.scope, row.best_epoch, row.best) == ("overall", best_epoch, best)
    assert row.final == pytest.approx(final, nan_ok=True)
    assert row.degradation == pytest.approx(degradation, nan_ok=True)


def test_a_target_counts_only_what_reached_it():
    evals = evaluations((0.9, 0.0), (0.8, 0.5), (0.78, 0.7 - 5e-7), (0.75, 0.7), (0.6, 0.4))
    rows = peak_rows(evals, "accuracy", "max", [0.7, 0.5, 0.9, 0.0, 0.7, 0.975])
    assert rows == [
        PeakRow("overall", 1, 0.9, 0.6, pytest.approx(0.3), 0.0, evals[0].step),
        PeakRow("sparsity >= 0.50", 2, 0.8, 0.75, pytest.approx(0.05), 0.5, evals[1].step),
        PeakRow("sparsity >= 0.70", 3, 0.78, 0.75, pytest.approx(0.03), 0.7 - 5e-7, evals[2].step),
    ]
    assert peak_rows(evaluations((0.9, 0.98)), "accuracy", "max", [0.975])[1].scope == "sparsity >= 0.975"


@pytest.mark.parametrize(("early", "says"), [(0.9, True), (0.6, False)])
def test_an_overall_peak_of_a_less_sparse_network_is_not_compared(tmp_path, early, says):
    rows = [eval_row(1, early, sparsity=0.4), eval_row(2, 0.8, sparsity=0.7), eval_row(3, 0.7, sparsity=0.7)]
    text = printed(written(tmp_path, rows))
    assert ("The overall peak has 40.00% zeros, fewer than the target: not comparable." in text) is says


def test_no_finite_value_has_no_row():
    assert peak_rows(evaluations((NAN, 0.5)), "accuracy", "max", [0.5]) == []
    assert peak_rows(evaluations((0.5, 0.5)), "loss", "min", []) == []
    assert peak_rows([], "accuracy", "max", []) == []


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.85, "85.00%"),
        ("f1_score", 0.0, "0.00%"),
        ("loss", 0.85, "0.8500"),
        ("accuracy", NAN, "nan"),
        ("loss", INF, "inf"),
        ("loss", None, "-"),
    ],
)
def test_values_for_people(metric, value, text):
    assert shown(metric, value) == text


def test_history_reads_strings_for_what_json_has_no_word_for(tmp_path):
    run = written(tmp_path, [eval_row(1, "nan", loss="-inf"), eval_row(2, "inf"), train_row(1, "nan")])
    history = read_history(run)
    assert math.isnan(history.evals[0].metrics["accuracy"])
    assert [e.metrics["loss"] for e in history.evals] == [-INF, 1.0]
    assert history.evals[1].metrics["accuracy"] == INF
    assert math.isnan(history.train[0]["loss"])


def test_a_torn_line_does_not_count(tmp_path):
    run = written(tmp_path, [eval_row(1, 0.5)], tail='{"kind": "eval", "ep')
    assert (len(read_history(run).evals), read_history(run).unreadable) == (1, 0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps(eval_row(2, 0.6)) + "\n")
    history = read_history(run)
    assert ([e.epoch for e in history.evals], history.unreadable) == ([1, 2], 1)
    assert "could not be read: 1" in printed(run)


def test_steps_taken_again_replace_what_they_repeat(tmp_path):
    again = [eval_row(1, 0.5), train_row(15), eval_row(2, 0.9), eval_row(3, 0.8), train_row(15, 7.0)]
    run = written(tmp_path, [*again, eval_row(2, 0.6)])
    history = read_history(run)
    assert [(e.epoch, e.metrics["accuracy"]) for e in history.evals] == [(1, 0.5), (2, 0.6)]
    assert [row["loss"] for row in history.train] == [7.0]


def printed(run, *, kept=(), file=None, metric="accuracy"):
    file = file or io.StringIO()
    print_report(Console(file=file), run, metric=metric, mode="max", targets=[0.5, 0.7, 0.9], kept=kept)
    return file.getvalue()


def words(text):
    return [line.split() for line in text.splitlines()]


def test_the_tables(tmp_path):
    run = written(tmp_path, ROWS)
    lines = words(printed(run, kept=[manifest(run, "best_accuracy_0.8547_epoch_0002")]))
    assert ["overall", "2", "85.47%", "81.23%", "4.24%"] in lines
    assert ["sparsity", ">=", "0.50", "2", "85.47%", "81.23%", "4.24%"] in lines
    assert ["sparsity", ">=", "0.70", "3", "81.23%", "81.23%", "0.00%"] in lines
    assert not any("0.90" in line for line in lines)
    tests = [line for line in lines if line[:1] in (["selected"], ["final"])]
    assert tests == [["selected", "2", "84.00%", "0.5000"], ["final", "3", "80.00%", "nan"]]
    row = "milestone/best_accuracy_0.8547_epoch_0002.pt accuracy 0.8547 beats 0.5000 of epoch 1"
    assert row.split() in lines


def test_a_kept_file_is_named_whole_and_its_reason_fits_the_terminal(tmp_path, monkeypatch):
    run = written(tmp_path / "outputs [bold] of a day" / ("long" * 20), ROWS)
    stems = ["best_accuracy_at_sparsity_0.70_0.8547_epoch_0002", "best_accuracy_0.8547_epoch_0002"]
    kept = [manifest(run, stem, sequence=n) for n, stem in enumerate(stems)]
    output = printed(run, kept=kept, file=Screen(monkeypatch, 100))
    lines = re.sub(r"\x1b\[[0-9;]*m", "", output).splitlines()
    assert [line.split()[0] for line in lines if line.startswith("milestone/")] == [m.file for m in kept]
    (more,) = [line for line in lines if "peakpoint ls" in line]
    assert shlex.split(more)[-1] == str(run)
    assert all(len(line) <= 100 for line in lines if line != more)


def test_an_unknown_metric_names_those_there_are(tmp_path):
    run = written(tmp_path, ROWS)
    with pytest.raises(UserError, match=r"No evaluation has a finite acc; .* are: accuracy, loss\."):
        printed(run, metric="acc")


def test_the_command_prints_and_draws_without_torch_or_pyplot(tmp_path):
    run = written(tmp_path / "run", ROWS)
    kept = manifest(run, "best_accuracy_0.8547_epoch_0002")
    code = (
        "import sys; from peakpoint.commands.dispatch import main; status = main(['report', sys.argv[1]]);"
        "print([name for name in ('torch', 'matplotlib.pyplot') if name in sys.modules]); sys.exit(status)"
    )
    done = process("-c", code, run)
    assert done.stdout.splitlines()[-2:] == [f"Report: {run / 'report.html'}", "[]"]
    assert f"{kept.file}   {kept.reasons[0]}" in done.stdout
    assert done.stdout.count("sparsity >= ") == 2
    assert (run / "report" / "metric.png").exists()


def test_the_command_as_json(tmp_path, capsys):
    run = written(tmp_path, ROWS)
    kept = manifest(run, "best_accuracy_0.8547_epoch_0002")
    manifest(run, "gone")
    (run / "checkpoints" / "milestone" / "gone.pt").unlink()
    assert main(["report", str(run), "--json", "--metric", "loss"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["mode"]) == ("loss", "min")
    assert found["peaks"][0] == {
        "scope": "overall",
        "best_epoch": 2,
        "best": 0.51239,
        "final": 0.6,
        "degradation": pytest.approx(0.08761),
        "sparsity": 0.5,
        "best_step": 20,
    }
    assert found["tests"]["final"]["metrics"] == {"accuracy": 0.8, "loss": "nan"}
    assert [m["file"] for m in found["kept"]] == [kept.file]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "metrics.jsonl cannot be read: No such file or directory."),
        ("", "holds no evaluation yet"),
        (json.dumps(train_row(1)), "holds no evaluation yet"),
        ("\x00\x01 not json", "holds no evaluation yet"),
        ('{"kind": "eval", "epoch": 1}', "line 1 is not a row of metrics (KeyError: 'metrics')."),
        ('{"epoch": 1}', "line 1 is not a row of metrics (KeyError: 'kind')."),
        ("[1, 2]\n", "line 1 is not a row of metrics"),
        (json.dumps(eval_row("one", 0.5)), "line 1 is not a row of metrics"),
    ],
)
def test_bad_input_is_one_line_and_status_1(tmp_path, capsys, content, sentence):
    run = written(tmp_path, [])
    path = run / "metrics.jsonl"
    path.unlink() if content is None else path.write_text(content)
    assert main(["report", str(run)]) == 1
    output = capsys.readouterr()
    readable = sentence == "holds no evaluation yet"  # then there is a page
    assert output.out.strip() == (f"Report: {run / 'report.html'}" if readable else "")
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert sentence in output.err


def test_a_run_without_its_record_is_one_line(tmp_path, capsys):
    run = written(tmp_path, ROWS)
    (run / "run.json").unlink()
    assert main(["report", str(run)]) == 1
    assert "run.json cannot be read" in capsys.readouterr().err
