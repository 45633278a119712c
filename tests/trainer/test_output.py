"""What becomes of the output decides nothing over a run."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from peakpoint.checkpointing.storage import listing
from peakpoint.commands.dispatch import main
from peakpoint.trainer.sweep import storage
from tests.conftest import ROOT, TINY, rows, status

SHORT = (*TINY, "max_steps=4", "log_every=1", "test=false", "checkpoint/policy=[interval]")


def piped(arguments, into, cwd):
    """The exit code of train.py in a real pipe, and its stderr."""
    words = shlex.join([sys.executable, str(ROOT / "train.py"), *arguments])
    done = subprocess.run(
        ["bash", "-c", f"{words} {into}; exit ${{PIPESTATUS[0]}}"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("into", ["| head -1", ">/dev/full 2>&1"])
def test_a_reader_that_has_had_enough_ends_no_run(tmp_path, into):
    assert piped([*SHORT, f"hydra.run.dir={tmp_path}/run"], into, tmp_path) == (0, "")
    assert status(tmp_path / "run")["state"] == "finished"
    assert "training ended" in (tmp_path / "run" / "train.log").read_text()


def test_nor_a_sweep(tmp_path):
    code, err = piped(["-m", *SHORT, "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"], "| head -1", tmp_path)
    assert (code, err) == (0, "")
    assert [status(tmp_path / "sweep" / job)["state"] for job in "01"] == ["finished"] * 2


def test_without_a_terminal_the_table_of_a_sweep_is_whole(train, tmp_path):
    folder = tmp_path / ("a-long-name-" * 12)
    done = train("-m", *SHORT, "label_smoothing=0.012345,0.054321", f"hydra.sweep.dir={folder}").succeeded()
    lines = done.out.splitlines()
    assert str(folder) in lines
    for job, value in enumerate(("0.012345", "0.054321")):
        (row,) = [line for line in lines if line.startswith(f"{job} ") and "finished" in line]
        assert f"label_smoothing={value}" in row
        assert row.count("%") >= 2


def test_what_a_log_holds_is_escaped_as_well(train, tmp_path):
    done = train(*SHORT, f"hydra.run.dir={tmp_path}/a\x1b[2Jb").succeeded()
    log = (tmp_path / "a\x1b[2Jb" / "train.log").read_text()
    assert "a\\x1b[2Jb" in log
    assert "\x1b" not in log + done.out + done.err
    assert json.loads((tmp_path / "a\x1b[2Jb" / "status.json").read_text())["state"] == "finished"


def test_a_run_begins_with_four_lines_that_say_what_it_is(train):
    ramp = ("pruning.target=0.7", "pruning.start_step=4", "pruning.end_step=20")
    done = train(*TINY, *ramp, "optimizer=adamwprune", "max_steps=22", "hydra.run.dir=run").succeeded()
    network, data, optimizer, checkpoints = done.out[done.out.index("network ") :].splitlines()[:4]
    assert re.fullmatch(r"network      lenet5: 15,416 parameters, 98\.51% .* on \w+ \(.+\) in fp32", network)
    assert data == ("data         synthetic: 130 train, 14 val, 40 test images; 8 steps an epoch, 22 in all")
    assert optimizer.startswith("optimizer    adamwprune, lr 0.001; pruning by bitter7 to 70.00% of ")
    assert optimizer.endswith("steps 4 to 20")
    held = [m for m in listing.manifests(Path("run/checkpoints")) if m.tier == "training"]
    found = re.fullmatch(
        r"checkpoints  at most (\d+) at once, ([\d.]+) kB each, [\d.]+ MB in all, in (.*)", checkpoints
    )
    assert int(found[1]) >= len(held)
    assert float(found[2]) * 1000 == pytest.approx(held[-1].bytes, rel=0.05)
    assert Path(found[3]).samefile("run/checkpoints")


def test_without_pruning_or_test_neither_is_mentioned(train):
    done = train(*SHORT, "optimizer=sgd", "data.train_size=100")
    assert "; no pruning\n" in done.out
    assert ", 10 val images; " in done.out


@pytest.mark.usefixtures("own_components")
def test_a_network_that_cannot_be_measured_without_values_trains_all_the_same(train, monkeypatch):
    def build(*_):
        random.random(), torch.rand(1)
        raise RuntimeError("no values")

    expected = rows_of(train, "a")
    monkeypatch.setattr(storage, "measured", build)
    assert rows_of(train, "b") == expected


def rows_of(train, name):
    """The evaluations of a run, with the digests of its weights."""
    done = train(*SHORT, f"hydra.run.dir={name}").succeeded()
    assert ("checkpoints  in " in done.out) == (name == "b")
    return rows(Path(name), "eval")


def test_a_run_ends_with_three_commands_that_work_as_they_are_printed(train, capsys):
    done = train(*TINY, "checkpoint.interval=1", "pruning.target=0", "epochs=1", "hydra.run.dir=a run")
    head, _, commands = done.out.partition("\nNext:\n")
    assert "best epoch" in head
    assert ".pt" not in commands
    resume, report, promote = map(shlex.split, commands.splitlines())
    assert resume[0] == "python"
    assert resume[2:] == ['resume="a run"', "epochs=2"]
    assert train(*resume[2:]).code == 0
    assert [row["epoch"] for row in rows(Path("a run"), "eval")] == [1, 2]
    texts = ("license", "description", "intended_use", "limitations", "ethical_considerations")
    Path("card.yaml").write_text("".join(f"{name}: a test\n" for name in texts))
    for words in (report, promote):
        assert words[0] == "peakpoint"
        assert main(words[1:]) == 0, capsys.readouterr().err
    assert list(Path("a run/checkpoints/production").glob("*v1.0.0.pt"))


def test_a_run_that_a_policy_ended_names_no_line_that_would_train_nothing(train):
    bound = "checkpoint.policy.early_stopping.stop_at=0.0"
    done = train(*TINY, bound, "pruning.target=0", "hydra.run.dir=run").succeeded()
    assert done.out.partition("Next:\n")[2].split()[:2] == ["peakpoint", "report"]
