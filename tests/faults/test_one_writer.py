"""One writer a directory, reported by name, and no dead one in the way."""

import fcntl
import os
import shutil
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from peakpoint.base import files, lock
from peakpoint.base.errors import BusyError, CheckpointError
from peakpoint.base.lock import one_writer
from peakpoint.checkpointing.storage import journal, listing, locate, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest
from tests.faults.fault_cases import held, in_child, put, sound, tidy


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory's lock."""
    with held(tmp_path) as process:
        yield process


def test_the_second_is_refused_with_the_process_and_the_host(tmp_path, holder):
    with pytest.raises(BusyError) as refused, one_writer(tmp_path):
        pytest.fail("two writers")
    who = f"process {holder.pid} on {socket.gethostname()}"
    assert str(refused.value) == f"{tmp_path} is being written by {who}: wait for it, or end it."


def test_the_lock_of_a_dead_holder_is_free(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / lock.LOCK).read_text()
    with one_writer(tmp_path):
        assert f'"pid": {os.getpid()}' in (tmp_path / lock.LOCK).read_text()
        with pytest.raises(BusyError, match=f"process {os.getpid()} on"), one_writer(tmp_path):
            pytest.fail("two writers in one process")
    with one_writer(tmp_path):
        pass


def test_a_worker_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    """As a data loader's worker does for some seconds when the trainer is killed."""
    reading, writing = os.pipe()

    holder = os.fork()
    if holder == 0:
        try:
            with one_writer(tmp_path):
                if os.fork() == 0:
                    os.close(writing)
                    os.read(reading, 1)  # until the test is over
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    assert os.waitpid(holder, 0)[1] == signal.SIGKILL
    with one_writer(tmp_path):
        pass
    os.close(writing)
    os.close(reading)


def test_a_forked_child_that_returns_leaves_the_lock_to_its_parent(tmp_path):
    with one_writer(tmp_path):
        text = (tmp_path / lock.LOCK).read_text()
        child = os.fork()
        if child == 0:
            try:
                with pytest.raises(BusyError), one_writer(tmp_path):
                    pass
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert (tmp_path / lock.LOCK).read_text() == text


def test_a_copy_made_in_the_middle_of_a_save_is_a_run_of_its_own(tmp_path):
    """What was half-written when the folder was copied has no writer there."""
    target = Store(tmp_path / "run", "run")
    put(target, 1)

    def produce(file):
        file.write(b"half")
        shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=True)

    with one_writer(tmp_path / "run"):
        target.save([manifest("training/b.pt")], produce)
        shutil.copy(tmp_path / "run" / lock.LOCK, tmp_path / "copy")
        with one_writer(tmp_path / "copy"):
            copy = Store(tmp_path / "copy", "run")
            assert sound(copy.root) == [1]
            assert tidy(copy.root)
            assert put(copy, 2).sequence == 2


def test_what_goes_wrong_inside_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / lock.LOCK).exists()
    with one_writer(tmp_path):
        pass


def test_who_waits_for_the_file_of_a_holder_that_has_ended_locks_the_new_one(tmp_path, monkeypatch):
    """It was opened while the holder was there, who then removed it."""
    real, turns = lock.try_lock, []

    def after_the_holder_ended(descriptor):
        if not turns:
            turns.append((tmp_path / lock.LOCK).unlink())
        return real(descriptor)

    monkeypatch.setattr(lock, "try_lock", after_the_holder_ended)
    with one_writer(tmp_path), pytest.raises(BusyError), one_writer(tmp_path):
        pytest.fail("two writers")
    assert turns


def test_a_lock_file_that_was_there_is_left_as_it_was(tmp_path):
    (tmp_path / lock.LOCK).write_text("of a dead holder")
    before = (tmp_path / lock.LOCK).stat().st_mtime_ns
    with one_writer(tmp_path):
        pass
    assert (tmp_path / lock.LOCK).read_text() == "of a dead holder"
    assert (tmp_path / lock.LOCK).stat().st_mtime_ns == before


def test_a_holder_that_says_nothing_readable_is_another_process(tmp_path, holder):
    (tmp_path / lock.LOCK).write_text("[1")
    with pytest.raises(BusyError, match="by another process: wait"), one_writer(tmp_path):
        pytest.fail("two writers")


def test_a_lock_that_is_a_link_or_has_no_directory_is_one_line(tmp_path):
    (tmp_path / "precious").write_text("of the user")
    (tmp_path / lock.LOCK).symlink_to("precious")
    for folder, reason in ((tmp_path, ""), (tmp_path / "no", ": No such file")):
        with pytest.raises(CheckpointError, match=f"cannot be written to{reason}"), one_writer(folder):
            pytest.fail("locked")
    assert (tmp_path / "precious").read_text() == "of the user"


def test_who_gives_out_names_is_alone_and_who_looks_is_not(tmp_path):
    def free(kind):
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB) is None
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)

    with lock.briefly(tmp_path):
        assert not free(fcntl.LOCK_SH)
    with lock.briefly(tmp_path, shared=True):
        assert free(fcntl.LOCK_SH)
        assert not free(fcntl.LOCK_EX)
    assert free(fcntl.LOCK_EX)


def test_a_lock_on_a_file_that_was_replaced_is_no_lock(tmp_path, monkeypatch):
    """The holder before ended once its file was opened here, and another was first with a new one."""
    path, take = tmp_path / lock.LOCK, lock.try_lock
    path.touch()

    def late(descriptor):
        monkeypatch.undo()
        path.unlink()
        assert take(others.append(os.open(path, os.O_RDWR | os.O_CREAT)) or others[0])
        return take(descriptor)

    others: list[int] = []
    monkeypatch.setattr(lock, "try_lock", late)
    with pytest.raises(BusyError), one_writer(tmp_path):
        pytest.fail("another holds it")
    os.close(others[0])


def test_where_locks_do_not_work_it_is_stated_and_nothing_staged_is_swept(tmp_path, monkeypatch, caplog):
    """Whether the writer of a staged file lives nobody knows, and it may be in the middle of a save."""

    def no_locks(descriptor, kind):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    target = Store(tmp_path / "c", "run")

    def produce(file):
        file.write(b"half")
        files.sweep(tmp_path / "c" / "training")
        Store(tmp_path / "c", "run")
        file.write(b"whole")

    with one_writer(tmp_path):
        saved = target.save([manifest("training/a.pt")], produce)[0]
    assert target.path(saved).read_bytes() == b"halfwhole"
    assert "a file system without locks" in caplog.text


def test_two_runs_in_one_root_never_touch_each_other(tmp_path):
    """Both save, in two processes at once, under the same names, and let their older ones go."""
    root = tmp_path / "checkpoints"

    def train(run, say):
        target = Store(root, run)
        kept = []
        for value in range(100):
            kept.append(put(target, value))
            if len(kept) > 2:
                target.delete(kept.pop(0))
        say("done")

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda run: in_child(lambda say: train(run, say)), ["a", "b"]))
    assert ended == [(0, ["done"])] * 2
    assert sorted(sound(root)) == [98, 98, 99, 99]
    assert sorted(m.run for m in listing.manifests(root)) == ["a", "a", "b", "b"]
    assert tidy(root)


def test_a_writer_that_lives_keeps_its_staged_files(tmp_path):
    """Another run starts in the same root in the middle of a save, which must end well."""
    writer = Store(tmp_path, "run")
    started, go_on = os.pipe(), os.pipe()

    def slow(file):
        file.write(b"half")
        os.write(started[1], b".")
        os.read(go_on[0], 1)

    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(writer.save, [manifest("training/a.pt")], slow)
        os.read(started[0], 1)
        try:
            Store(tmp_path, "same process")
            assert in_child(lambda say: Store(tmp_path, "other process") and None)[0] == 0
            assert len(list(tmp_path.rglob(f"{files.STAGED_PREFIX}*"))) == 1
        finally:
            os.write(go_on[1], b".")
        store.verify(tmp_path, saving.result(60)[0])


def test_what_a_dead_writer_staged_is_swept_and_nothing_else(tmp_path):
    def die(say):
        target = Store(tmp_path, "run")
        put(target, 1)

        def produce(file):
            file.write(b"x" * 5_000_000)
            os.kill(os.getpid(), signal.SIGKILL)

        target.save([manifest("training/b.pt")], produce)

    in_child(die)
    users = [
        "training/notes.txt",
        "training/my_copy.pt",
        ".hidden",
        "training/.staging",
        "milestone/x.manifest",
    ]
    for name in users:
        (tmp_path / name).write_text("of the user")
    assert len(list(tmp_path.rglob(f"{files.STAGED_PREFIX}*"))) == 1
    Store(tmp_path, "run")
    assert list(tmp_path.rglob(f"{files.STAGED_PREFIX}*")) == []
    assert [(tmp_path / name).read_text() for name in users] == ["of the user"] * len(users)
    assert sound(tmp_path) == [1]


@pytest.mark.parametrize("run", ["run", "another"])
def test_bytes_whose_manifest_was_never_named_go_with_it_if_they_are_ours(tmp_path, run):
    def die(say):
        target = Store(tmp_path, "run")
        rename, seen = os.replace, []

        def dying(*names):
            if seen:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(names)
            rename(*names)

        os.replace = dying
        put(target, 7)

    in_child(die)
    orphan = tmp_path / "training" / "c0007.pt"
    assert orphan.exists()
    assert locate.newest_verified(tmp_path).manifest is None
    Store(tmp_path, run)
    assert orphan.exists() is (run == "another")
    assert [f["file"] for f in journal.read(tmp_path)] == ["training/c0007.pt"] * (run == "run")
    Store(tmp_path, "run")
    assert not orphan.exists()
    assert tidy(tmp_path)


def test_a_claim_never_reaches_out_of_its_folder(tmp_path):
    root = tmp_path / "checkpoints"
    put(Store(root, "run"), 1)
    (tmp_path / "precious.pt").write_text("of the user")
    claim = root / "training" / f"{files.STAGED_PREFIX}1-x{store.CLAIM}"
    claim.write_text('{"file": "../../precious.pt", "run": "run"}')
    Store(root, "run")
    assert (tmp_path / "precious.pt").exists()
    assert not claim.exists()


def test_the_trainer_names_the_holder(train, tmp_path, holder):
    before = time.monotonic()
    done = train("hydra.run.dir=.")
    assert time.monotonic() - before < 60
    assert done.code == 1
    assert f"is being written by process {holder.pid} on {socket.gethostname()}" in done.err
