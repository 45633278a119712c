"""What becomes of the output decides nothing over a run."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT, TINY, status

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
    done = train("-m", *SHORT, "label_smoothing=0.012345,0.054321", f"hydra.sweep.dir={folder}")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert str(folder) in lines
    for job, value in enumerate(("0.012345", "0.054321")):
        (row,) = [line for line in lines if line.startswith(f"{job} ") and "finished" in line]
        assert f"label_smoothing={value}" in row
        assert row.count("%") >= 2


def test_what_a_log_holds_is_escaped_as_well(train, tmp_path):
    done = train(*SHORT, f"hydra.run.dir={tmp_path}/a\x1b[2Jb")
    assert done.code == 0, done.err
    log = (tmp_path / "a\x1b[2Jb" / "train.log").read_text()
    assert "a\\x1b[2Jb" in log
    assert "\x1b" not in log + done.out + done.err
    assert json.loads((tmp_path / "a\x1b[2Jb" / "status.json").read_text())["state"] == "finished"
