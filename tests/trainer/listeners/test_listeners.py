"""What is seen and written of a run: console, metrics.jsonl, TensorBoard."""

import io
import json
import logging
import math

import pytest

from peakpoint.base.terminal import Console
from peakpoint.checkpointing.events import (
    Deleted,
    EpochEnd,
    EvalEnd,
    Interrupted,
    RunEnd,
    Saved,
    Skipped,
    StepEnd,
    Verified,
)
from peakpoint.trainer.listeners import events
from peakpoint.trainer.listeners.console import ConsoleHandler, ConsoleListener, LogLines
from peakpoint.trainer.listeners.events import Logged
from peakpoint.trainer.listeners.jsonl import JsonLines, row
from peakpoint.trainer.reports.history import read_history
from tests.conftest import Screen

METRICS = {"accuracy": 0.5, "top5_accuracy": 0.9, "f1_score": 0.4, "loss": 1.25}
EVAL = EvalEnd(2, 16, METRICS, 0.7, 3)
EVENTS = [
    StepEnd(1, 1),
    Logged(1, 3, 2.5, 0.001, 100.0),
    EVAL,
    EpochEnd(2, 16),
    Saved("training/a.pt", ("interval", "best"), 1000, 0.01, 0.5),
    Skipped(2, 17, ("interval", "wall_clock")),
    Verified("training/a.pt"),
    Deleted("training/b.pt"),
    RunEnd(2, 16, "all epochs are done"),
    Interrupted(2, 16, 15),
    events.Tested("selected", 2, 16, METRICS, 0.7, 40, 1000, "a.pt"),
]


def strict(line):
    return json.loads(line, parse_constant=pytest.fail)


def test_events_with_numbers_have_a_row_each(tmp_path):
    lines = JsonLines(tmp_path, 0, set())
    for event in EVENTS:
        lines(event)
        text = (tmp_path / "metrics.jsonl").read_text()
        assert text == "" or text.endswith("}\n")  # whole on disk before the next event
    lines.close()
    found = [strict(line) for line in text.splitlines()]
    assert found == [
        {"kind": "train", "epoch": 1, "step": 3, "loss": 2.5, "lr": 0.001, "images_per_second": 100.0,
         "skipped": 0},
        {"kind": "eval", "epoch": 2, "step": 16, "metrics": METRICS, "sparsity": 0.7, "mask_version": 3},
        {"kind": "save", "file": "training/a.pt", "tags": ["interval", "best"], "bytes": 1000,
         "stall_s": 0.01, "total_s": 0.5},
        {"kind": "skipped save", "epoch": 2, "step": 17, "tags": ["interval", "wall_clock"]},
        {"kind": "test", "which": "selected", "epoch": 2, "step": 16, "metrics": METRICS, "sparsity": 0.7,
         "samples": 40, "bytes": 1000, "file": "a.pt"},
    ]  # fmt: skip
    assert [e for e in EVENTS if row(e) is None] == [e for e in EVENTS if type(e) in (
        StepEnd, EpochEnd, Verified, Deleted, RunEnd, Interrupted)]  # fmt: skip


def test_what_is_not_finite_is_a_word_and_read_back_as_a_number(tmp_path):
    lines = JsonLines(tmp_path, 0, set())
    lines(Logged(1, 1, math.nan, 0.1, 1.0))
    lines(EvalEnd(1, 1, {"accuracy": 0.5, "loss": math.inf}, 0.0, 0))
    lines.close()
    first, second = map(strict, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["loss"], second["metrics"]["loss"]) == ("nan", "inf")
    assert read_history(tmp_path).evals[0].metrics["loss"] == math.inf


def train_row(step):
    return json.dumps({"kind": "train", "epoch": 1, "step": step, "loss": 1.0, "lr": 0.1})


def eval_row(step):
    return json.dumps(
        {"kind": "eval", "epoch": 1, "step": step, "metrics": {}, "sparsity": 0, "mask_version": 0}
    )


TEST_ROW = json.dumps({"kind": "test", "which": "final", "epoch": 1, "step": 8, "metrics": {}})
SKIPPED_ROW = json.dumps({"kind": "skipped save", "epoch": 1, "step": 9, "tags": ["interval"]})
SAVE_ROW = json.dumps({"kind": "save", "file": "a.pt"})
TORN = '{"kind": "train", "epo'

TABLE = {
    "nothing written again": ([train_row(3), eval_row(8), SAVE_ROW], 8, {8}, []),
    "steps after the checkpoint": ([train_row(3), train_row(9), SKIPPED_ROW], 8, set(), [1, 2]),
    "a skipped save before it": ([train_row(3), SKIPPED_ROW], 9, set(), []),
    "an evaluation at its step that it has": ([train_row(8), eval_row(8)], 8, {8}, []),
    "an evaluation at its step that it lacks": ([train_row(8), eval_row(8)], 8, set(), [1]),
    "every reading of the test set": ([eval_row(8), TEST_ROW], 8, {8}, [1]),
    "the torn last line": ([train_row(3), TORN], 8, set(), [1]),
    "a fresh start": ([train_row(3), eval_row(8), TEST_ROW], 0, set(), [0, 1, 2]),
}


@pytest.mark.parametrize(("lines", "step", "evaluated", "moved"), TABLE.values(), ids=TABLE)
def test_rows_that_will_be_written_again_are_moved_not_lost(tmp_path, lines, step, evaluated, moved):
    path, aside = tmp_path / "metrics.jsonl", tmp_path / "metrics.superseded.jsonl"
    path.write_text("\n".join(lines) + ("" if lines[-1] == TORN else "\n"))
    written = JsonLines(tmp_path, step, evaluated)
    written(Logged(1, 99, 1.0, 0.1, 1.0))
    written.close()
    *kept, last = path.read_text().splitlines()
    assert strict(last)["step"] == 99
    assert kept == [line for i, line in enumerate(lines) if i not in moved]
    assert (aside.read_text().splitlines() if aside.exists() else []) == [lines[i] for i in moved]


def test_rows_that_are_moved_twice_are_both_there(tmp_path):
    for number in (1, 2):
        lines = JsonLines(tmp_path, 0, set())
        lines(Logged(1, number, 1.0, 0.1, 1.0))
        lines.close()
    JsonLines(tmp_path, 0, set()).close()
    aside = (tmp_path / "metrics.superseded.jsonl").read_text().splitlines()
    assert [strict(line)["step"] for line in aside] == [1, 2]


@pytest.fixture
def console():
    """A console, and what it shows."""
    log = logging.getLogger("peakpoint")
    file = io.StringIO()
    made = Console(file=file)
    handler = ConsoleHandler(made)
    level = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    yield made, file.getvalue
    log.removeHandler(handler)
    log.setLevel(level)


def test_each_thing_is_one_line(console):
    made, shown = console
    listeners = [LogLines(24), ConsoleListener(made, total_steps=24, start_step=0)]
    for event in EVENTS:
        for listener in listeners:
            listener(event)
    listeners[1].close()
    lines = shown().splitlines()
    assert lines == [
        "epoch 1 step 3/24 loss 2.5000 lr 1.00e-03 100 images/s",
        "epoch 2 step 16 validation: accuracy 50.00%, top-5 90.00%, F1 40.00%, loss 1.2500, sparsity 70.00%",
        "saved training/a.pt (interval, best): 1.0 kB in 0.50 s, training waited 0.010 s",
        "epoch 2 step 17 is not saved (interval, wall_clock): the save before it is still being written",
        "training ended at epoch 2, step 16: all epochs are done",
        "test, selected weights (epoch 2): accuracy 50.00%, loss 1.2500",
    ]


def test_on_a_terminal_there_is_a_bar_and_it_goes_away(monkeypatch):
    file = Screen(monkeypatch, columns=80)
    made = Console(file=file)
    listener = ConsoleListener(made, total_steps=24, start_step=3)
    for event in EVENTS:
        listener(event)
    listener.close()
    assert "/24" in file.getvalue()
    assert "loss 2.5000, 100 images/s" in file.getvalue()
    assert file.getvalue().rstrip().endswith(("\x1b[2K", "\x1b[?25h"))


def test_brackets_in_a_line_are_text(console):
    _, shown = console
    LogLines(1)(RunEnd(1, 1, "see [red] and [/x]"))
    assert shown() == "training ended at epoch 1, step 1: see [red] and [/x]\n"
