"""Bytes on disk that survive: atomic write, digest, verify. Knows nothing of policies.

A checkpoint is two files side by side, `<stem>.pt` and its manifest `<stem>.json`. Each is staged in the
destination directory, written, fsynced and renamed, the manifest last; then the directory is fsynced.
Symlinks such as `latest.pt` are for people: no code path reads them back to decide anything.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from peakpoint.base import digests
from peakpoint.base.bounded import read_json
from peakpoint.base.digests import BLAKE3
from peakpoint.base.disk_space import failure
from peakpoint.base.errors import CheckpointError, Gone, os_reason
from peakpoint.base.files import CHUNK, Staged, abandoned, fsync_directory, point, staged_name
from peakpoint.base.files import STAGED as STAGED
from peakpoint.base.lock import briefly, followed, present
from peakpoint.checkpointing.storage import journal
from peakpoint.checkpointing.storage.listing import Index
from peakpoint.checkpointing.storage.manifest import (
    MILESTONE,
    TRAINING,
    Manifest,
    companions_of,
    read_manifest,
)

log = logging.getLogger("peakpoint")

CLAIM = ".manifest"
Payload = Mapping[str, Callable[[Staged], object]]
"""What writes each file of a checkpoint, by its path from the root; the first is the one it is named by."""


class Store:
    """The checkpoints of one run under `root`, which is created when it is missing.

    Only files whose manifest carries `run` are ever deleted. Raises CheckpointError when `root` or a tier in
    it cannot be written to. `index` has what was read under `root` already. Who may have rivals holds
    `lock.one_writer` on the run's directory first.
    """

    def __init__(self, root: Path, run: str, index: Index | None = None) -> None:
        self._root = root
        self.run = run
        folder = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._make_missing()
            for folder in (root, root / TRAINING, root / MILESTONE):
                self._sweep(folder)
                probe = folder / f"{STAGED}{os.getpid()}-probe"
                probe.open("xb").close()
                probe.unlink()
            self._sync_folders()
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {folder}: {os_reason(error)}. "
                "Make it writable or choose another directory with hydra.run.dir=DIR."
            ) from None
        self._index = index or Index(root)
        self.sequence = max((m.sequence for m in self.manifests()), default=0)
        if self._index.unreadable(only_looks=True):  # they have places in the order, too
            noted = [fact.get("sequence") for fact in journal.read(root)]
            self.sequence = max([self.sequence, *(n for n in noted if type(n) is int)])

    @property
    def root(self) -> Path:
        """The folder of the tiers, where it is now: a run's directory may be moved while it is written."""
        return followed(self._root)

    def check_place(self) -> None:
        """Raise Gone when the run's directory is not to be found any more, so that nothing can be saved."""
        try:
            present(self._root)
        except OSError as error:
            why = f"{error.filename} is not there any more: it was {error.strerror}"
            raise Gone(f"{why}. The run cannot be saved, so it ends.") from None

    def _make_missing(self) -> list[Path]:
        """Make the folders that are missing, but none above `root`: that would hide a disk that went away."""
        folders = (self.root, self.root / TRAINING, self.root / MILESTONE)
        missing = [folder for folder in folders if not folder.exists()]
        for folder in missing:
            folder.mkdir(exist_ok=True)
        return missing

    def _sync_folders(self) -> None:
        for folder in (self.root, self.root.parent):  # the tiers themselves must survive a power cut
            fsync_directory(folder)

    def manifests(self) -> list[Manifest]:
        """Every readable manifest, also of other runs, oldest first; the folders are listed once for it."""
        return self._index.look()

    def mine(self) -> list[Manifest]:
        """As `manifests`, of this run."""
        return [m for m in self.manifests() if m.run == self.run]

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

    def number(self) -> int:
        """The next place in the order of this run's checkpoints, which decides what is the newest."""
        self.sequence += 1
        return self.sequence

    def save(
        self,
        roles: Sequence[Manifest],
        produce: Callable[[Staged], object],
        *,
        expected: int | None = None,
    ) -> list[Manifest]:
        """Write the bytes that `produce` writes, once, under the name of each of their roles.

        Returns the manifests completed; all are durable. Folders that somebody removed are made again. Raises
        SaveFailed when the operating system refuses, and then nothing partial is left under a final name;
        `expected` bytes are what its message says are needed. A role that was given a number keeps it.
        """
        self.check_place()
        first, *others = roles
        try:
            if missing := self._make_missing():
                self._sync_folders()
                log.warning("%s was removed, with what was in it: it is made again.", missing[0])
            with staged(self.root, {first.file: produce}, BLAKE3) as files:
                data = files[first.file]
                first = self._commit(replace(first, bytes=data.size, digest=data.digest), data.publish)
        except OSError as error:
            raise failure(self.root, error, expected) from error
        return [first, *(self.share(first, role) for role in others)]

    def share(self, source: Manifest, role: Manifest) -> Manifest:
        """Give the bytes of `source` a second name: a hard link, or a copy where links do not work.

        Raises SaveFailed as `save` does.
        """
        done = replace(role, bytes=source.bytes, digest=source.digest)
        try:
            return self._commit(done, lambda target: _link(self.path(source), target))
        except OSError as error:
            raise failure(self.root, error, source.bytes) from error

    def _commit(self, manifest: Manifest, take_name: Callable[[Path], object]) -> Manifest:
        """Make what has its bytes by `take_name` a checkpoint of this run, under a name that no other has."""
        manifest = replace(manifest, sequence=manifest.sequence or self.number())
        with briefly(self.root):
            mark = (self.root / manifest.file).with_suffix(".json")
            with contextlib.suppress(CheckpointError):
                # Another run may have taken the name since it was chosen.
                if mark.exists() and read_manifest(mark).run != self.run:
                    manifest = replace(manifest, file=self.free_name(manifest.tier, mark.stem))
            commit(self.root, manifest, {manifest.file: take_name})
        self.note("saved", manifest.file, "; ".join(manifest.reasons), manifest.sequence)
        return manifest

    def point(self, tier: str, pointer: str, manifest: Manifest) -> None:
        """Let the symlink `<tier>/<pointer>.pt` name a checkpoint; skipped where symlinks do not work."""
        link = self.root / tier / f"{pointer}.pt"
        if link.with_suffix(".json").exists():  # a checkpoint has this name
            return
        point(link, Path(manifest.file).name)

    def delete(self, manifest: Manifest, reason: str = "") -> None:
        """Remove a checkpoint of this run, its manifest first, so that no crash leaves a false promise.

        `reason` goes to the journal. Raises OSError when it cannot be removed.
        """
        if manifest.run != self.run:
            raise CheckpointError(f"{manifest.file} belongs to run {manifest.run}, not to this one: kept.")
        path = self.path(manifest)
        claim = staged_name(path, CLAIM)
        with contextlib.suppress(FileNotFoundError):
            path.with_suffix(".json").replace(claim)
        path.unlink(missing_ok=True)
        claim.unlink(missing_ok=True)
        self.note("deleted", manifest.file, reason, manifest.sequence)

    def retire(self, doomed: Mapping[Manifest, str]) -> list[Manifest]:
        """Delete checkpoints, each with the reason; returns those that are gone, and warns of the others."""
        gone = []
        for manifest, reason in doomed.items():
            try:
                self.delete(manifest, reason)
                gone.append(manifest)
            except OSError as error:
                log.warning("%s could not be deleted: %s. Training goes on.", manifest.file, os_reason(error))
        return gone

    def note(self, event: str, file: str, reason: str, sequence: int | None = None) -> None:
        """Add a line to the journal; never raises for a disk that refuses."""
        journal.append(self.root, event, file, reason, sequence)

    def _sweep(self, folder: Path) -> None:
        """Finish what dead writers left half-done here: a save is undone, a deletion is completed.

        Bytes without a manifest go only when a staged manifest of this run claims them; any other file
        without one was put there by somebody else.
        """
        for stray in folder.glob(f"{STAGED}*"):
            if not abandoned(stray):
                continue
            if stray.name.endswith(CLAIM) and (found := _claimed(stray)):
                file, run = found
                path = folder / file
                if not path.with_suffix(".json").exists() and path.is_file() and not path.is_symlink():
                    if run != self.run:
                        continue
                    path.unlink(missing_ok=True)
                    self.note("swept", f"{folder.name}/{file}", "a save or a deletion of it was cut short")
            stray.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(root: Path, payload: Payload, algorithm: str) -> Iterator[dict[str, Staged]]:
    """Write and sync every file of a checkpoint beside its name; those without a name in the end are gone."""
    with contextlib.ExitStack() as stack:
        found = {name: stack.enter_context(Staged(root / name, algorithm=algorithm)) for name in payload}
        for name, produce in payload.items():
            produce(found[name])
            found[name].sync()
        yield found


def commit(
    root: Path, manifest: Manifest, files: Mapping[str, Callable[[Path], object]], *, exclusive: bool = False
) -> None:
    """Give the files of a checkpoint their names, then the manifest its own, which makes them a checkpoint.

    The manifest is on disk under a staged name before: should this process die between the two, it tells the
    next start whose the bytes without a manifest are. On failure none keeps its name, unless it writes over
    an earlier try. `exclusive`: nothing may have the manifest's name. Raises OSError.
    """
    mark = (root / manifest.file).with_suffix(".json")
    again = not exclusive and mark.exists()
    made: list[Path] = []
    try:
        with Staged(mark, CLAIM) as claim:
            claim.write(manifest.to_json().encode())
            claim.sync()
            for name, take_name in files.items():
                take_name(root / name)
                made.append(root / name)
            for folder in {path.parent for path in made} if exclusive else ():  # before what vouches for them
                fsync_directory(folder)
            (claim.create if exclusive else claim.publish)()
            made.append(mark)
        fsync_directory(mark.parent)
    except BaseException:
        for path in () if again else reversed(made):  # the manifest first
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        with Staged(target) as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, CHUNK)
            copy.sync()
            copy.publish()


def _claimed(claim: Path) -> tuple[str, str] | None:
    """The file name and the run in a staged manifest; None when it was not written to its end."""
    try:
        raw = read_json(claim)
        return PurePosixPath(raw["file"]).name, str(raw["run"])
    except (CheckpointError, TypeError, KeyError):
        return None


def verify(root: Path, manifest: Manifest, threads: int = digests.ALL) -> None:
    """Check the bytes of a checkpoint, of a release every file, against its manifest.

    On one thread where a training goes on beside it. Raises CheckpointError with what is wrong.
    """
    path = root / manifest.file
    try:
        size = path.stat().st_size
        if size != manifest.bytes:
            raise CheckpointError(f"{path} has {size} bytes and its manifest says {manifest.bytes}.")
        for name, digest in {manifest.file: manifest.digest, **companions_of(manifest)}.items():
            path = root / name
            if not digests.matches(path, digest, threads):
                raise CheckpointError(f"{path} does not match the digest in its manifest: its bytes changed.")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {os_reason(error)}.") from None
