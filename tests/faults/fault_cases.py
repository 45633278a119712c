"""Storage that fails at a chosen operation, in a process of its own."""

import contextlib
import ctypes
import io
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.storage import listing, store
from peakpoint.checkpointing.storage.manifest import Manifest
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import ROOT

CALLS = (
    "open", "mkdir", "fsync", "posix_fadvise", "replace", "rename", "link", "symlink", "unlink", "write",
    "ftruncate",
)  # fmt: skip
KILLED = -signal.SIGKILL
FORKING = threading.Lock()
"""filelock, which torch brings, refuses two forks at once."""
REFUSED = 3


def payload(value: int, size: int = 5000) -> bytes:
    """Bytes that identify their checkpoint; to the store a real `.pt` is as good as any."""
    period = bytes((value + i) % 251 for i in range(251))
    return (period * (size // 251 + 1))[:size]


def put(target: Store, value: int, tier: str = "training", *, size: int = 5000, pieces: int = 1) -> Manifest:
    """Save the checkpoint of a value under its own name, in pieces of `size` bytes."""

    def produce(file) -> None:
        whole = payload(value, size * pieces)
        for number in range(pieces):
            file.write(whole[number * size : (number + 1) * size])

    file = target.free_name(tier, f"c{value:04d}")
    return target.save([manifest(file, run=target.run, epoch=value)], produce)[0]


def sound(root: Path) -> list[int]:
    """The values of the checkpoints that verify; their bytes are what was saved."""
    found = []
    for each in listing.manifests(root):
        store.verify(root, each)
        assert (root / each.file).read_bytes() == payload(each.epoch, each.bytes)
        found.append(each.epoch)
    return found


def tidy(root: Path) -> bool:
    """No staged file, no bytes without a manifest, no manifest without bytes."""
    assert list(root.rglob(f"{STAGED_PREFIX}*")) == []
    for tier in ("training", "milestone"):
        files = {p.stem for p in (root / tier).glob("*.pt") if not p.is_symlink()}
        assert files == {p.stem for p in (root / tier).glob("*.json")}
    return True


class Faulty:
    """Counts the storage operations of this process and spoils the one numbered `at`.

    how: `kill` before it happens, `torn` (half of a write, then killed), or an errno to raise, then once or,
    lasting, from then on.
    """

    def __init__(self, at: int, how: str | int, *, lasting: bool = False) -> None:
        self.at, self.how, self.lasting, self.count = at, how, lasting, 0
        self.names: set[str] = set()

    def install(self) -> None:
        """Put the hooks in place, for the rest of this process."""
        for name in CALLS:
            setattr(os, name, self._hooked(name, getattr(os, name)))
        real = os.fdopen
        os.fdopen = lambda fd, mode, buffering=-1: (  # type: ignore[assignment]
            self._file(fd) if mode == "wb" and buffering == 0 else real(fd, mode, buffering)
        )

    def _hooked(self, name: str, real: Callable) -> Callable:
        def call(*args, **kwargs):
            self.names.add(name)
            self.strike()
            return real(*args, **kwargs)

        return call

    def _file(self, descriptor: int) -> io.FileIO:
        faulty = self

        class Raw(io.FileIO):
            def write(self, data) -> int:
                faulty.strike(lambda: io.FileIO.write(self, memoryview(data)[: len(data) // 2]))
                return super().write(data)

        return Raw(descriptor, "wb")

    def strike(self, half: Callable[[], object] | None = None) -> None:
        """One operation is about to happen."""
        self.count += 1
        if self.count < self.at or (self.count > self.at and not self.lasting):
            return
        if isinstance(self.how, int):
            raise OSError(self.how, os.strerror(self.how))
        if self.how == "torn" and half:
            half()
        os.kill(os.getpid(), signal.SIGKILL)


def in_child(
    work: Callable[[Callable[[str], None]], None], fault: Faulty | None = None
) -> tuple[int, list[str]]:
    """Run `work(say)` in a fork with the fault installed; returns how it ended and what it had stated."""
    reading, writing = os.pipe()
    with FORKING:
        child = os.fork()
    if child == 0:
        say = os.write  # before the hooks
        code = 1
        try:
            os.close(reading)
            if fault:
                fault.install()
            work(lambda line: say(writing, f"{line}\n".encode()) and None)
            if fault:
                say(writing, f"calls {' '.join(fault.names)}\ncount {fault.count}\n".encode())
            code = 0
        except CheckpointError:
            code = REFUSED
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        stated = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), stated


@contextlib.contextmanager
def mounted(disk: Path, options: str):
    """A file system of its own, or a skip."""
    disk.mkdir(exist_ok=True)
    if os.getuid() != 0:
        pytest.skip("only root can mount")
    done = subprocess.run(["mount", *options.split(), str(disk)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount refuses: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextlib.contextmanager
def ordinary_user():
    """Within: the permissions of files hold for this thread, also where root runs the tests."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this thread
    before, reduced = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None)
    assert libc.capget(header, before) == 0
    reduced[:] = before[:]
    reduced[0] &= ~0b110  # effective: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(header, reduced) == 0
    try:
        yield
    finally:
        libc.capset(header, before)


HOLD = """
import sys, time
from pathlib import Path
from peakpoint.base.lock import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Within: another process, which is killed at the end, holds the lock of a directory."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()
