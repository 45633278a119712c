"""Readers look again before they say damaged; only the one writer of a run moves what is."""

import threading

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.base.lock import alone, one_writer
from peakpoint.checkpointing.storage import locate, quarantine, store
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.checkpointing.storage.store import Store
from peakpoint.library.manager import CheckpointManager
from tests.checkpointing.checkpoint_cases import damage, saved
from tests.faults.fault_cases import held, in_child, put


def rewritten(target, name, value):
    """Delete a checkpoint and write another under its name."""
    for old in target.mine():
        if old.file == name:
            target.delete(old)
    return saved(target, name, value)


def test_a_checkpoint_written_anew_under_its_name_is_read_again(tmp_path):
    target = Store(tmp_path, "run")
    old = saved(target, "training/a.pt", 1.0)
    new = rewritten(target, "training/a.pt", 2.0)
    assert new.file == old.file
    with pytest.raises(CheckpointError):
        store.verify(tmp_path, old)
    assert locate.verified(tmp_path, old).digest == new.digest
    assert locate.newest(tmp_path, [old]).digest == new.digest
    assert locate.verdict(tmp_path, old) is None
    assert quarantine.set_aside(tmp_path, [(old.file, "it was")]) == []


def test_a_checkpoint_that_its_writer_deleted_is_not_damaged(tmp_path, caplog):
    target = Store(tmp_path, "run")
    kept, gone = saved(target, "training/a.pt", 1.0), saved(target, "training/b.pt", 2.0)
    target.delete(gone)
    assert locate.verified(tmp_path, gone) is None
    assert locate.newest(tmp_path, [kept, gone]).file == kept.file
    assert locate.verdict(tmp_path, gone) is None
    assert not locate.is_sound(tmp_path, gone)
    assert caplog.text == ""


def test_what_another_version_wrote_meanwhile_stays_where_it_is(tmp_path):
    target = Store(tmp_path, "run")
    mark = target.path(saved(target)).with_suffix(".json")
    body = mark.read_text().replace('"format": 2', '"format": 3')
    mark.write_text(sealed(body.rpartition(',\n  "check": ')[0] + "}"))
    assert quarantine.set_aside(tmp_path, [("training/a.pt", "it was")]) == []
    assert sorted(p.name for p in mark.parent.iterdir()) == ["a.json", "a.pt"]


def test_beside_a_writer_that_writes_anew_all_the_time_nothing_is_damaged(tmp_path):
    target = Store(tmp_path, "run")
    put(target, 0)
    stop, found = threading.Event(), []

    def read():
        while not stop.is_set():
            found.append(locate.newest_verified(tmp_path).skipped)
            locate.newest_in(tmp_path, "training")

    reader = threading.Thread(target=read)
    reader.start()
    for value in range(40):
        target.delete(target.mine()[-1])
        put(target, value % 3)
    stop.set()
    reader.join()
    assert len(found) > 5
    assert not any(found)
    assert not (tmp_path / quarantine.QUARANTINE).exists()


@pytest.mark.parametrize("locked", ["run", "run/checkpoints"])
def test_who_does_not_own_a_run_moves_nothing(tmp_path, locked, caplog):
    """Neither while the trainer holds the run nor while the library holds the folder."""
    root = tmp_path / "run" / "checkpoints"
    target = Store(root, "library-x")
    kept, bad = saved(target, "training/a.pt", 1.0), saved(target, "training/b.pt", 2.0)
    damage(root / bad.file)
    (root / "training" / "c.json").write_text("{")
    with held(tmp_path / locked):
        assert CheckpointManager(root).get_latest_checkpoint("training") == root / kept.file
        assert locate.locate(root / "training" / "latest.pt")[1].file == kept.file
        assert (root / bad.file).exists()
        assert not (root / quarantine.QUARANTINE).exists()
        assert "is damaged and was passed over" in caplog.text
        assert "moved" not in caplog.text
    assert CheckpointManager(root).get_latest_checkpoint("training") == root / kept.file
    assert sorted(p.suffix for p in (root / quarantine.QUARANTINE).iterdir()) == [
        ".json", ".json", ".pt", ".txt", ".txt",
    ]  # fmt: skip
    assert "was moved to" in caplog.text


def test_the_one_writer_is_alone_and_nobody_else_is(tmp_path):
    with one_writer(tmp_path), alone(tmp_path) as only:
        assert only
        with alone(tmp_path, tmp_path) as again:
            assert again
        assert in_child(lambda say: say(str(_alone(tmp_path)))) == (0, ["False"])
    with alone(tmp_path) as only:
        assert only


def _alone(directory):
    with alone(directory) as only:
        return only
