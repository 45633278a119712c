"""Records that find no room wait, in order and whole, and are written when there is room."""

import logging
import os

import pytest

from peakpoint.trainer.listeners import retrying_file
from peakpoint.trainer.listeners.retrying_file import RetryingFile, RetryingHandler
from tests.checkpointing.checkpoint_cases import files_no_larger_than

RECORDS = [f"record {number:02d} of ten bytes or more\n".encode() for number in range(20)]


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "peakpoint")
    return lambda: caplog.messages


@pytest.mark.parametrize("limit", range(0, 120, 7))
def test_wherever_room_ends_the_file_holds_whole_records_in_order(tmp_path, warnings, limit):
    path = tmp_path / "metrics.jsonl"
    file = RetryingFile(path)
    with files_no_larger_than(limit):
        for number, record in enumerate(RECORDS[:10], 1):
            file.write(record)
            there = path.read_bytes()
            assert there == b"".join(RECORDS[: limit // len(record)])[: len(there)]
            assert len(there) % len(record) == 0
            assert file.missing == number - len(there) // len(record)
    (warning,) = warnings()
    assert warning.startswith(f"{path} cannot be written: File too large (")
    assert warning.endswith(". What belongs there waits in memory; training continues.")
    for record in RECORDS[10:]:
        file.write(record)
    file.close()
    assert path.read_bytes() == b"".join(RECORDS)
    assert file.missing == 0
    assert len(warnings()) == 2
    assert warnings()[1].startswith(f"{path} is written again: ")


def test_a_second_outage_is_a_second_warning(tmp_path, warnings):
    file = RetryingFile(tmp_path / "f")
    for _ in range(2):
        with files_no_larger_than(0):
            file.write(b"one")
            file.write(b"two")
        file.write(b"three")
    assert [line.split(" ", 1)[1].split(":")[0] for line in warnings()] == [
        "cannot be written", "is written again", "cannot be written", "is written again",
    ]  # fmt: skip


def test_more_than_may_wait_pushes_the_oldest_out_and_says_so(tmp_path, warnings, monkeypatch):
    monkeypatch.setattr(retrying_file, "WAITING", 5)
    file = RetryingFile(tmp_path / "f")
    with files_no_larger_than(0):
        for record in RECORDS:
            file.write(record)
        assert file.missing == 20
    file.flush()
    assert (tmp_path / "f").read_bytes() == b"".join(RECORDS[-5:])
    assert warnings()[1].endswith("is written again: 5 records had waited, the oldest 15 are lost.")
    assert file.missing == 15


def test_records_that_were_never_written_are_a_warning_at_the_end(tmp_path, warnings):
    file = RetryingFile(tmp_path / "f")
    with files_no_larger_than(0):
        file.write(b"one")
        file.close()
    assert warnings()[-1] == f"{tmp_path / 'f'} lacks 1 records: there was no room for them."


def test_a_file_that_was_moved_is_made_again(tmp_path):
    file = RetryingFile(tmp_path / "f")
    file.write(b"one\n")
    (tmp_path / "f").rename(tmp_path / "g")
    file.write(b"two\n")
    assert [(tmp_path / name).read_bytes() for name in "gf"] == [b"one\n", b"two\n"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_nothing_is_written_through_a_link_or_to_a_pipe(tmp_path, warnings, kind):
    path, target = tmp_path / "f", tmp_path / "elsewhere"
    if kind == "link":
        target.write_text("theirs")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(target)
    file = RetryingFile(path)
    file.write(b"one\n")
    assert file.missing == 1
    assert len(warnings()) == 1
    assert not target.exists() or target.read_text() == "theirs"
    path.unlink()
    file.close()
    assert path.read_bytes() == b"one\n"


def test_the_log_takes_its_own_warning_and_prints_no_traceback(tmp_path, capsys):
    log = logging.getLogger("peakpoint")
    path = tmp_path / "train.log"
    handler = RetryingHandler(str(path))
    log.addHandler(handler)
    try:
        log.warning("waits until the directory is the run's")
        assert not path.exists()
        handler.file.open()
        with files_no_larger_than(0):
            log.warning("first")
        log.warning("second")
        handler.emit(logging.makeLogRecord({"msg": "a name that is no text: \udcff"}))
    finally:
        log.removeHandler(handler)
    early, first, full, *rest = path.read_text().splitlines()
    assert (early, first) == ("waits until the directory is the run's", "first")
    assert full.startswith(f"{path} cannot be written: File too large (")
    again = f"{path} is written again: 3 records had waited."
    assert rest == ["second", again, "a name that is no text: \\udcff"]
    assert "Traceback" not in capsys.readouterr().err
