"""Loggers are chosen as a list, and a plugin adds one with the same line as ours."""

import csv
import json
import sys

import pytest

from peakpoint.base import registry
from tests.conftest import TINY, rows, status

PLUGIN = """
import csv
from dataclasses import dataclass

from peakpoint import UserError, register
from peakpoint.checkpointing.events import EvalEnd
from peakpoint.trainer.listeners.events import Logger


@register("logger", "table")
@dataclass(kw_only=True)
class Table(Logger):
    file: str = "evaluations.csv"

    def check(self, directory):
        if (directory / self.file).is_dir():
            raise UserError(f"{directory / self.file} is a directory: move it away.")

    def build(self, attempt):
        return Rows((attempt.directory / self.file).open("a", newline=""))


class Rows:
    def __init__(self, file):
        self.file, self.writer = file, csv.writer(file)

    def __call__(self, event):
        if isinstance(event, EvalEnd):
            self.writer.writerow([event.epoch, event.metrics["accuracy"]])

    def close(self):
        self.file.write("closed\\n")
        self.file.close()


@register("logger", "broken")
@dataclass(kw_only=True)
class Broken(Logger):
    def build(self, attempt):
        raise UserError("no room for a logger")


@register("logger", "failing")
@dataclass(kw_only=True)
class Failing(Logger):
    def build(self, attempt):
        return Fails()


@register("logger", "nothing")
@dataclass(kw_only=True)
class Nothing(Logger):
    def build(self, attempt):
        pass


class Fails:
    def __call__(self, event):
        raise RuntimeError("no such place")

    def close(self):
        pass
"""
OURS = [word for word in TINY if not word.startswith("logger")]
CHOSEN = ("plugins=[csv_of_mine]", "logger=[table]")


@pytest.fixture
def plugin(tmp_path, monkeypatch, own_components):
    (tmp_path / "csv_of_mine.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("csv_of_mine", None)


def evaluations(path):
    with path.open(newline="") as file:
        return [[int(row[0]), float(row[1])] for row in csv.reader(file) if row != ["closed"]]


def test_a_plugin_adds_a_logger_which_is_closed_and_resumed(train, plugin, tmp_path):
    run = tmp_path / "run"
    (run / "table.csv").mkdir(parents=True)
    command = (*OURS, *CHOSEN, "logger.table.file=table.csv", "hydra.run.dir=run")
    assert train(*command).err == f"error: {run / 'table.csv'} is a directory: move it away.\n"
    assert [path.name for path in run.iterdir()] == ["table.csv"]
    (run / "table.csv").rmdir()
    done = train(*command, "epochs=2")
    assert done.code == 0, done.err
    assert "accuracy" not in done.out.partition("Validation")[0]
    assert train("resume=run", "epochs=3", CHOSEN[0]).code == 0
    expected = [[row["epoch"], row["metrics"]["accuracy"]] for row in rows(run, "eval")]
    assert evaluations(run / "table.csv") == expected
    assert [epoch for epoch, _ in expected] == [1, 2, 3]
    assert not (run / "tensorboard").exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("broken", "no room for a logger"),
        (
            "nothing",
            "The build of the logger nothing has returned an object of type NoneType: let it return an "
            "object with __call__ and close.",
        ),
    ],
)
def test_where_one_cannot_be_built_the_others_are_closed(train, plugin, tmp_path, name, sentence):
    done = train(*OURS, CHOSEN[0], f"logger=[table,{name}]", "hydra.run.dir=run")
    assert (done.code, done.err) == (1, f"error: {sentence}\n")
    assert (tmp_path / "run" / "evaluations.csv").read_text() == "closed\n"
    assert status(tmp_path / "run")["state"] == "failed"


def test_a_logger_that_fails_is_left_out_and_training_goes_on(train, plugin, tmp_path):
    done = train(*OURS, CHOSEN[0], "logger=[failing,table]", "hydra.run.dir=run")
    assert done.code == 0, done.err
    line = "logger.failing failed and is left out from here on: RuntimeError: no such place It was raised in"
    assert done.out.count(line) == 1
    assert len(evaluations(tmp_path / "run" / "evaluations.csv")) == len(rows(tmp_path / "run", "eval"))
    found = status(tmp_path / "run")
    assert found["state"] == "finished"
    assert [note for note in found["notes"] if note.startswith(line)] == found["notes"]
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()


def test_the_record_of_a_run_is_written_without_any_logger(train, tmp_path):
    done = train(*OURS, "logger=[]", "max_steps=4", "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines() == [line for line in done.out.splitlines() if "cannot stop this run" in line]
    assert rows(tmp_path / "run", "eval")
    logged = (tmp_path / "run" / "train.log").read_text()
    assert all(word in logged for word in ("DEBUG epoch 1 step", "INFO saved", "INFO test, final"))
    assert not (tmp_path / "run" / "tensorboard").exists()
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert recorded["logger"] == {}


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("logger=[tensorbord]", "logger=tensorbord is not a choice: did you mean tensorboard? {own}"),
        (
            "+logger.mine=3",
            "logger.mine is not a registered logger; there are: console, mlflow, tensorboard, wandb. {own}",
        ),
        (
            "logger.console.bar=true",
            "logger.console.bar is not a key of this configuration: logger.console has none.",
        ),
    ],
)
def test_a_wrong_logger_is_one_line(train, typed, sentence):
    assert set(registry.table("logger")) == {"console", "mlflow", "tensorboard", "wandb"}
    done = train(*TINY, typed)
    assert (done.code, done.err) == (1, f"error: {sentence.format(own=registry.OWN)}\n")


def test_a_run_whose_tensorboard_was_switched_on_is_resumed_with_it(train, tmp_path):
    """The record is rewritten as earlier versions wrote it: with a switch, and no group."""
    run = tmp_path / "run"
    done = train(*OURS, "epochs=1", "hydra.run.dir=run")
    assert done.code == 0, done.err
    record = json.loads((run / "run.json").read_text())
    record["attempts"][0]["overrides"].append("tensorboard=true")
    record["config"]["tensorboard"] = bool(record["config"].pop("logger"))
    (run / "run.json").write_text(json.dumps(record))
    saved = (run / ".hydra" / "config.yaml").read_text()
    group = "logger:\n  console: {}\n  tensorboard: {}\n"
    assert group in saved
    (run / ".hydra" / "config.yaml").write_text(saved.replace(group, "tensorboard: true\n"))
    done = train("resume=run", "epochs=2")
    assert done.code == 0, done.err
    assert "changed since the last attempt: epochs: 1 -> 2" in done.out
    assert "logger" not in done.out
    assert list(json.loads((run / "run.json").read_text())["config_now"]["logger"]) == [
        "console",
        "tensorboard",
    ]
