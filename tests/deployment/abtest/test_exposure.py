"""A log that several processes write to, that a crash leaves readable, and that says who saw what first."""

import json
import subprocess
import sys

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.abtest.exposure import Log, design, study
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.conftest import ROOT


@pytest.fixture
def log(tmp_path):
    return Log(tmp_path / "log.jsonl", "colours")


def lines(log):
    return log.path.read_bytes().splitlines()


def test_a_line_says_when_who_saw_what_and_what_came_of_it(log):
    log.exposed("ada", "champion", "1.0.0", "d")
    log.outcome("ada", True)
    first, second = map(json.loads, lines(log))
    assert first.pop("time").endswith("+00:00")
    assert second.pop("time").endswith("+00:00")
    common = {"experiment": "colours", "user": "ada"}
    facts = {"alias": "champion", "version": "1.0.0", "design": "d"}
    assert first == {"event": "exposure", **common, **facts}
    assert second == {"event": "outcome", **common, "value": 1.0}


def test_the_first_exposure_and_the_first_outcome_after_it_count(log):
    log.outcome("ada", False)
    log.exposed("ada", "champion", "1.0.0", "old")
    log.exposed("ada", "challenger_1", "1.1.0", "new")
    log.outcome("ada", True)
    log.outcome("ada", False)
    log.exposed("grace", "challenger_1", "1.1.0", "new")
    Log(log.path, "sizes").exposed("linus", "champion", "1.0.0", "new")
    found = study(log.path, "colours")
    ada, grace = found.subjects["ada"], found.subjects["grace"]
    assert (ada.alias, ada.outcome, grace.outcome) == ("champion", 1.0, None)
    assert (found.strays, found.crossed, found.unreadable) == (1, 1, 0)
    assert found.within("old") == [ada]
    assert found.within("new") == [grace]
    assert set(study(log.path, "sizes").subjects) == {"linus"}


def test_no_id_is_stored_when_users_are_hashed(tmp_path):
    logs = [Log(tmp_path / f"{name}.jsonl", name, hash_users=True) for name in ("one", "two")]
    for log in logs:
        log.exposed("ada@example.org", "champion", "1.0.0", "d")
        log.outcome("ada@example.org", 2.5)
        assert b"ada" not in log.path.read_bytes()
    stored = [study(log.path, log.experiment).subjects for log in logs]
    assert [len(subjects) for subjects in stored] == [1, 1]
    assert [s.outcome for subjects in stored for s in subjects.values()] == [2.5, 2.5]
    assert not set(stored[0]) & set(stored[1])  # one experiment's hash does not find the other's user


def test_a_torn_line_is_passed_over_and_the_next_one_stands_on_its_own(log):
    log.exposed("ada", "champion", "1.0.0", "d")
    whole = log.path.read_bytes()
    for cut in range(1, len(whole)):
        log.path.write_bytes(whole + whole.replace(b"ada", b"torn")[:cut])
        assert set(study(log.path, "colours").subjects) == {"ada"}
        log.exposed("grace", "champion", "1.0.0", "d")
        found = study(log.path, "colours")
        assert (set(found.subjects), found.unreadable) == ({"ada", "grace"}, 1)


@pytest.mark.parametrize(
    "foreign",
    [b"\xff\xfe", b"[1]", b"7", b"null", b"{}", b"[" * 100_000, b'{"event": []}', b'{"event": "exposure"}']
    + [
        json.dumps({"event": "outcome", "experiment": "colours", "user": "ada", "value": value}).encode()
        for value in (float("nan"), "1", None, True, 1e200)
    ],
)
def test_a_line_of_another_kind_is_counted_and_passed_over(log, foreign):
    log.exposed("ada", "champion", "1.0.0", "d")
    with log.path.open("ab") as file:
        file.write(foreign + b"\n")
    log.outcome("ada", 1.0)
    found = study(log.path, "colours")
    assert found.unreadable == 1
    assert found.subjects["ada"].outcome == 1.0


def test_lines_of_several_processes_do_not_mix(log):
    code = (
        "import sys; from pathlib import Path; from peakpoint.deployment.abtest.exposure import Log\n"
        "log = Log(Path(sys.argv[1]), 'colours')\n"
        "for i in range(300): log.exposed(f'{sys.argv[2]}-{i}' + 'x' * 300, 'champion', '1.0.0', 'd')"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(log.path), str(n)], cwd=ROOT) for n in range(3)
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    found = study(log.path, "colours")
    assert (len(found.subjects), found.unreadable) == (900, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, 1e200, 10**400])
def test_an_outcome_that_is_no_number_is_refused(log, value):
    with pytest.raises(CheckpointError, match="not an outcome"):
        log.outcome("ada", value)
    assert lines(log) == []


@pytest.mark.parametrize("harm", ["no folder", "a folder", "a link"])
def test_a_log_that_cannot_be_written_is_reported_at_once(tmp_path, harm):
    path = tmp_path / "log.jsonl"
    if harm == "no folder":
        path = tmp_path / "nowhere" / "log.jsonl"
    elif harm == "a folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "precious")
    with pytest.raises(CheckpointError, match=r"log\.jsonl cannot be written to: .*\. Free space"):
        Log(path, "colours")
    assert not (tmp_path / "precious").exists()


def test_a_full_disk_is_reported_and_loses_no_older_line(log):
    log.exposed("ada", "champion", "1.0.0", "d")
    with (
        files_no_larger_than(log.path.stat().st_size + 20),
        pytest.raises(CheckpointError, match="Free space"),
    ):
        log.exposed("grace", "champion", "1.0.0", "d")
    log.exposed("linus", "champion", "1.0.0", "d")
    assert set(study(log.path, "colours").subjects) == {"ada", "linus"}


def test_no_log_is_one_clear_line(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        study(tmp_path / "typo.jsonl", "colours")


def test_a_design_is_the_shares_and_the_versions():
    split, versions = {"champion": 0.9, "challenger_1": 0.1}, {"champion": "1.0.0", "challenger_1": "1.1.0"}
    same = design(split, versions)
    assert design({"challenger_1": 1, "champion": 9}, dict(reversed(versions.items()))) == same
    assert design({"champion": 0.8, "challenger_1": 0.2}, versions) != same
    assert design(split, {**versions, "challenger_1": "1.0.0"}) != same
