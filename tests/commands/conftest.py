"""Runs to look at, and the command line in this process."""

import math
import re
import shutil
from contextlib import redirect_stdout

import pytest

from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands import dispatch as cli
from tests.checkpointing.checkpoint_cases import manifest, saved
from tests.conftest import TINY, Done, Screen, complete_run


@pytest.fixture
def cli_main(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def main(*arguments):
        code = cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return Done(code, out, err)

    return main


@pytest.fixture
def on_a_terminal(monkeypatch):
    """Run a command as on a terminal of that many columns; returns what that shows."""

    def main(columns, *arguments):
        with redirect_stdout(Screen(monkeypatch, columns)) as screen:
            cli.main([str(a) for a in arguments])
        return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())

    return main


@pytest.fixture
def run(tmp_path):
    """A run of three checkpoints, two of which share their bytes."""
    target = Store(tmp_path / "run" / "checkpoints", "run")
    saved(target, "training/a.pt", 1.0, metrics={"accuracy": 0.5, "loss": math.nan}, sparsity=0.7)
    last = saved(target, "training/b.pt", 2.0, metrics={"accuracy": 0.6}, epoch=2)
    target.share(last, manifest("milestone/best.pt", metrics={"accuracy": 0.6}, reasons=("the [best]",)))
    target.set_pointer("training", "latest", last)
    return tmp_path / "run"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of 24 steps that kept what its policies keep; not to be changed."""
    run = tmp_path_factory.mktemp("finished") / "run"
    return complete_run(run, *TINY, "checkpoint.interval_steps=4", "checkpoint.keep_last=2")


@pytest.fixture
def trained(finished, tmp_path):
    """A copy of it to break; the copy has its own bytes under each name."""
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"
