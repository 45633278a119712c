"""push and pull over a network and a disk that fail."""

import os
import subprocess
import sys

import pytest

from peakpoint.checkpointing.remote import client, download
from peakpoint.checkpointing.storage import listing
from tests.conftest import ROOT
from tests.faults.fault_cases import mounted
from tests.remotes import Fault, kill_at_a_request


def test_a_pull_that_was_cut_off_goes_on_where_it_was(run, s3, tmp_path, cli_main, monkeypatch):
    assert cli_main("push", run, s3.url, "--what", "training")[0] == 0
    monkeypatch.setattr(client, "CHUNK", 300)
    parts = -(-listing.manifests(run / "checkpoints")[1].bytes // 300)
    assert parts > 4
    s3.proxy.seen.clear()
    s3.proxy.faults = [Fault("none", b"b.pt", 3), Fault("drop", b"b.pt", 99)]
    assert "b.pt could not be read" in cli_main("pull", s3.url, tmp_path / "back").refusal()
    s3.proxy.seen.clear()
    s3.proxy.faults = []
    assert cli_main("pull", s3.url, tmp_path / "back")[0] == 0
    assert len(s3.proxy.lines(b"b.pt")) == parts - 3
    assert cli_main("verify", tmp_path / "back")[0] == 0
    assert not list((tmp_path / "back").rglob(".staged-*"))


@pytest.mark.usefixtures("pushed")
def test_a_half_that_is_wrong_is_not_used(run, url, tmp_path, cli_main):
    newest = listing.manifests(run / "checkpoints")[1]
    folder = tmp_path / "back" / "checkpoints" / "training"
    folder.mkdir(parents=True)
    (tmp_path / "back" / "mirror.json").write_text('{"run": "run"}')
    (folder / f".staged-pull-{newest.digest[-32:]}").write_bytes(b"nonsense")
    assert cli_main("pull", url, tmp_path / "back")[0] == 0
    assert cli_main("verify", tmp_path / "back")[0] == 0


def test_killed_in_a_pull_and_started_again(run, s3, tmp_path, cli_main):
    assert cli_main("push", run, s3.url, "--what", "training")[0] == 0
    s3.proxy.seen.clear()
    s3.proxy.faults = [Fault("hang", b"a.pt", 1)]
    process = subprocess.Popen(
        [sys.executable, "-m", "peakpoint", "pull", s3.url, "back"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    kill_at_a_request(process, s3.proxy, b"a.pt")
    s3.proxy.seen.clear()
    out = cli_main("pull", s3.url, tmp_path / "back").output()
    assert "here  training/b.pt" in out
    assert "pulled  training/a.pt" in out
    assert s3.proxy.lines(b"b.pt") == []
    assert cli_main("verify", tmp_path / "back")[0] == 0


@pytest.mark.parametrize("kind", ["lie", "truncate", "reset", "drop", "busy"])
def test_faults_that_pass_are_got_over(run, s3, tmp_path, cli_main, kind, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 4)
    s3.proxy.faults = [Fault(kind, b"a.pt"), Fault(kind, b"b.json"), Fault(kind, b"mirror.json")]
    cli_main("push", run, s3.url, "--what", "training").succeeded()
    s3.proxy.faults = [Fault(kind, b"b.pt"), Fault(kind, b"a.pt")]
    assert cli_main("pull", s3.url, tmp_path / "back")[0] == 0
    assert cli_main("verify", tmp_path / "back")[0] == 0


@pytest.mark.parametrize("what", [b"mirror.json", b"b.json", b"record/0"])
def test_what_reads_badly_once_is_read_again(trained, s3, tmp_path, cli_main, what):
    assert cli_main("push", trained, s3.url)[0] == 0
    if what == b"b.json":
        what = next(m.file for m in listing.manifests(trained / "checkpoints") if m.tier == "milestone")
        what = what.replace(".pt", ".json").encode()
    s3.proxy.faults = [Fault("lie", what)]
    assert "0 refused" in cli_main("pull", s3.url, tmp_path / "back").output()
    assert s3.proxy.faults[0].times == 0
    assert (tmp_path / "back" / "run.json").exists()


@pytest.mark.usefixtures("pushed")
def test_missing_disk_space_is_reported_before(url, tmp_path, cli_main, monkeypatch):
    monkeypatch.setattr(download, "free_room", lambda path: (100, None))
    err = cli_main("pull", url, tmp_path / "back").refusal()
    assert err.startswith(f"error: {tmp_path / 'back'}")  # and not that nothing there is sound
    assert err.endswith("and 100 bytes are free: make room.\n")


@pytest.mark.root
def test_a_full_disk_is_named_and_keeps_nothing_half_written(run, pushed, url, tmp_path, cli_main):
    with mounted(tmp_path / "disk", "-t tmpfs -o size=16k tmpfs") as disk:
        (disk / "back").mkdir()
        (disk / "rest").write_bytes(b"0" * (16 << 10))
        err = cli_main("push", run, f"file://{disk}/far").refusal()
        assert "could not be written: No space left on device." in err
        assert list(disk.rglob(".staged-*")) == []
        err = cli_main("pull", url, disk / "back").failed().err
        assert err == f"error: {disk / 'back' / 'mirror.json'}: No space left on device.\n"


def test_a_server_that_is_not_there_is_one_line(run, s3, tmp_path, cli_main):
    s3.proxy.faults = [Fault("drop", times=10**6)]
    for arguments in (("push", run, s3.url), ("pull", s3.url, tmp_path / "back")):
        assert s3.url in cli_main(*arguments).refusal()
    assert not (tmp_path / "back").exists()
