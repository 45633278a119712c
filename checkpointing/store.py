"""Bytes on disk that survive: atomic write, digest, verify, walk back. Knows nothing of policies.

A checkpoint is two files side by side, `<stem>.pt` and its manifest `<stem>.json`. Each is staged in the
destination directory, written, fsynced and renamed, the manifest last; then the directory is fsynced.
Symlinks such as `latest.pt` are for people: no code path reads them back to decide anything.
"""

import contextlib
import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from checkpointing.errors import CheckpointError
from checkpointing.manifest import Manifest, read_manifest
from checkpointing.policy import MILESTONE, TRAINING

STAGED = ".staged-"
QUARANTINE = "quarantine"
CHUNK = 1 << 20


class HashingWriter(io.RawIOBase):
    """Passes writes on to a file and digests them on the way, so the bytes are read once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        """Write all of `data`; returns its length in bytes."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._file.write(view)
        self.size += len(view)
        return len(view)

    def hexdigest(self) -> str:
        """The sha256 of everything written so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """The newest checkpoint that verifies, and what was passed over on the way with the reason."""

    manifest: Manifest | None
    skipped: tuple[tuple[str, str], ...]


class Store:
    """The checkpoints of one run under `root`, which is created when it is missing.

    Only files whose manifest carries `run` are ever deleted. Raises CheckpointError when `root` cannot be
    written to.
    """

    def __init__(self, root: Path, run: str) -> None:
        self.root = root
        self.run = run
        try:
            for tier in (TRAINING, MILESTONE):
                (root / tier).mkdir(parents=True, exist_ok=True)
            self._sweep()
            probe = root / f"{STAGED}{os.getpid()}-probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {root}: {error.strerror or error}. "
                "Make it writable or choose another directory with hydra.run.dir=DIR."
            ) from None
        self.sequence = max((m.sequence for m in manifests(root)), default=0)

    def path(self, manifest: Manifest) -> Path:
        """Where the bytes of a manifest lie."""
        return self.root / manifest.file

    def free_name(self, tier: str, stem: str) -> str:
        """`<tier>/<stem>.pt`, with a number when a checkpoint of that name is already there."""
        name, number = stem, 1
        while any((self.root / tier / f"{name}{end}").exists() for end in (".pt", ".json")):
            number += 1
            name = f"{stem}_{number}"
        return f"{tier}/{name}.pt"

    def save(self, manifest: Manifest, produce: Callable[[BinaryIO], None]) -> Manifest:
        """Write the bytes that `produce` writes, then the manifest; returns it completed.

        Both are durable on return. On an OSError nothing partial is left under a final name.
        """
        self.sequence += 1
        target = self.path(manifest)
        with _staged(target) as file:
            hashing = HashingWriter(file)
            produce(hashing)  # type: ignore[arg-type]
        return self._commit(
            replace(manifest, bytes=hashing.size, sha256=hashing.hexdigest(), sequence=self.sequence)
        )

    def share(self, source: Manifest, role: Manifest) -> Manifest:
        """Give the bytes of `source` a second name: a hard link, or a copy where links do not work."""
        self.sequence += 1
        target = self.path(role)
        try:
            target.hardlink_to(self.path(source))
        except OSError:
            with _staged(target) as file, self.path(source).open("rb") as original:
                shutil.copyfileobj(original, file, CHUNK)
        return self._commit(replace(role, bytes=source.bytes, sha256=source.sha256, sequence=self.sequence))

    def _commit(self, manifest: Manifest) -> Manifest:
        path = self.path(manifest)
        mark = path.with_suffix(".json")
        try:
            with _staged(mark) as file:
                file.write(manifest.to_json().encode())
        except OSError:
            if not mark.exists():  # bytes without a manifest would only fill the disk
                path.unlink(missing_ok=True)
            raise
        fsync_directory(path.parent)
        return manifest

    def point(self, tier: str, pointer: str, manifest: Manifest) -> None:
        """Let the symlink `<tier>/<pointer>.pt` name a checkpoint; skipped where symlinks do not work."""
        link = self.root / tier / f"{pointer}.pt"
        if link.with_suffix(".json").exists():  # a checkpoint has this name
            return
        staged = link.with_name(f"{STAGED}{os.getpid()}-{secrets.token_hex(4)}")
        with contextlib.suppress(OSError):
            staged.symlink_to(Path(manifest.file).name)
            staged.replace(link)

    def delete(self, manifest: Manifest) -> None:
        """Remove a checkpoint of this run, its manifest first, so that no crash leaves a false promise."""
        if manifest.run != self.run:
            raise CheckpointError(f"{manifest.file} belongs to run {manifest.run}, not to this one: kept.")
        path = self.path(manifest)
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a writer of this directory left half-written when it was killed."""
        for folder in (self.root, self.root / TRAINING, self.root / MILESTONE):
            for stray in folder.glob(f"{STAGED}*"):
                stray.unlink(missing_ok=True)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[BinaryIO]:
    """A new file beside `target` that takes its name once it is written and fsynced, or vanishes."""
    staged = target.with_name(f"{STAGED}{os.getpid()}-{secrets.token_hex(4)}")
    # Not mkstemp: it makes files that only their owner can read.
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as raw, io.BufferedWriter(raw, CHUNK) as file:
            yield file
            file.flush()
            os.fsync(raw.fileno())
        staged.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            staged.unlink()
        raise


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, text: str) -> None:
    """Replace a small text file so that a reader sees the old or the new one, and a crash neither half."""
    with _staged(path) as file:
        file.write(text.encode())
    fsync_directory(path.parent)


def file_digest(path: Path) -> str:
    """The sha256 of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifests(root: Path) -> list[Manifest]:
    """Every readable manifest under `root`, oldest first. Unreadable ones are left out."""
    found = []
    for path in root.glob("*/*.json"):
        if path.parent.name in (TRAINING, MILESTONE):
            with contextlib.suppress(CheckpointError):
                found.append(read_manifest(path))
    return sorted(found, key=lambda m: (m.sequence, m.file))


def unreadable(root: Path) -> list[tuple[str, str]]:
    """The files under `root` whose manifests cannot be read, each with the reason."""
    found = []
    for path in sorted(p for tier in (TRAINING, MILESTONE) for p in (root / tier).glob("*.json")):
        try:
            read_manifest(path)
        except CheckpointError as error:
            found.append((f"{path.parent.name}/{path.stem}.pt", str(error)))
    return found


def verify(root: Path, manifest: Manifest) -> None:
    """Check the bytes of a checkpoint against its manifest. Raises CheckpointError with what is wrong."""
    path = root / manifest.file
    try:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise CheckpointError(f"{path} has {size} bytes and its manifest says {manifest.bytes}.")
        if file_digest(path) != manifest.sha256:
            raise CheckpointError(f"{path} does not match the sha256 of its manifest: its bytes changed.")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None


def newest_verified(root: Path) -> Found:
    """The newest checkpoint under `root` that verifies; damaged ones before it go to quarantine."""
    skipped = unreadable(root)
    for file, reason in skipped:
        quarantine(root, file, reason)
    for manifest in reversed(manifests(root)):
        try:
            verify(root, manifest)
        except CheckpointError as error:
            skipped.append((manifest.file, str(error)))
            quarantine(root, manifest.file, str(error))
            continue
        return Found(manifest, tuple(skipped))
    return Found(None, tuple(skipped))


def quarantine(root: Path, file: str, reason: str) -> None:
    """Move a damaged checkpoint and its manifest aside, never deleting them, and write down why."""
    folder = root / QUARANTINE
    folder.mkdir(exist_ok=True)
    flat = f"{secrets.token_hex(3)}_{file.replace('/', '_')}"
    for end in (".pt", ".json"):
        with contextlib.suppress(FileNotFoundError):
            (root / file).with_suffix(end).replace((folder / flat).with_suffix(end))
    (folder / flat).with_suffix(".txt").write_text(f"{file}: {reason}\n")
