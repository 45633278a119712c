"""The record of a run is JSON, true, and enough to make it again."""

import importlib.metadata
import json
import math
import os
import shlex
import subprocess
import sys

import pytest

from peakpoint.base.errors import UserError
from peakpoint.trainer.reports import run_record
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.conftest import TINY, status


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"{", "is not JSON"),
    ],
)
def test_what_is_no_record_is_one_clear_line(tmp_path, content, sentence):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as refusal:
        run_record.read_json(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_status_is_a_state_a_time_and_facts(tmp_path):
    run_record.set_status(tmp_path, "finished", reason="all epochs are done", epoch=3, loss=math.nan)
    found = status(tmp_path)
    assert {k: found[k] for k in ("state", "reason", "epoch", "loss")} == {
        "state": "finished", "reason": "all epochs are done", "epoch": 3, "loss": "nan",
    }  # fmt: skip
    assert found["time"].endswith("+00:00")
    run_record.set_status(tmp_path, "running")
    assert set(status(tmp_path)) == {"state", "time"}


def test_an_attempt_says_what_was_typed_and_by_whom_it_is_written(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "data.root=a b", "epochs=3"])
    found = run_record.attempt(2, ["epochs=3"], {"model": "lenet5", "hydra/help": "x"}, "training/a.pt")
    assert shlex.split(found["command"]) == [sys.executable, "train.py", "data.root=a b", "epochs=3"]
    assert (found["number"], found["overrides"], found["pid"]) == (2, ["epochs=3"], os.getpid())
    assert found["resumed_from"] == "training/a.pt"
    json.dumps(found, allow_nan=False)


def test_the_environment_names_packages_and_machine():
    found = run_record.machine()
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert set(found["packages"]) == set(run_record.PACKAGES)
    assert found["hardware"]["cpu_count"] == os.cpu_count()
    json.dumps(found, allow_nan=False)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository in which the code is thought to lie."""
    monkeypatch.setattr(run_record, "__file__", str(tmp_path / "record.py"))

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    return git


def test_the_code_is_a_commit_and_what_is_not_committed(repository, tmp_path):
    repository("init", "-q")
    (tmp_path / "a.py").write_text("a = 1\n")
    repository("add", "a.py")
    repository("commit", "-q", "-m", "first")
    assert run_record.code() == {"git_commit": repository("rev-parse", "HEAD"), "git_diff": ""}
    (tmp_path / "a.py").write_bytes(b"a = 2  # caf\xe9\n")  # Latin-1
    assert "+a = 2  # caf" in run_record.code()["git_diff"]


def test_without_a_repository_there_is_no_commit(repository, monkeypatch, tmp_path):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_record.code() == {"git_commit": None, "git_diff": None}


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert run_record.code() == {"git_commit": None, "git_diff": None}


def test_a_configuration_that_finds_no_room_leaves_no_part_of_it(train, tmp_path):
    with files_no_larger_than(1000):
        done = train(*TINY, "epochs=1", "test=false", "hydra.run.dir=run")
    assert (done.code, "File too large" in done.err) == (1, True)
    assert not list(tmp_path.rglob("*.yaml"))
    assert not (tmp_path / "run" / ".hydra").exists()
