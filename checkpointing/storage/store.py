"""Bytes on disk that survive: atomic write, digest, verify. Knows nothing of policies.

A checkpoint is two files side by side, `<stem>.pt` and its manifest `<stem>.json`. The bytes are written and
synced under a staged name, then the manifest is; the bytes take their name, then the manifest its own, which
makes them a checkpoint. Symlinks such as `latest.pt` are for people: no code path reads them.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from peakpoint.base import digests, files
from peakpoint.base.bounded import read_json, unread
from peakpoint.base.digests import SAVED_WITH
from peakpoint.base.disk_space import failure
from peakpoint.base.errors import CheckpointError, Gone, os_reason
from peakpoint.base.files import STAGED_PREFIX, Staged, abandoned, fsync_directory, staged_name
from peakpoint.base.lock import briefly, present
from peakpoint.checkpointing.storage import journal
from peakpoint.checkpointing.storage.listing import Index, check_outside, is_root
from peakpoint.checkpointing.storage.manifest import (
    MILESTONE,
    TRAINING,
    Manifest,
    companions_of,
    read_manifest,
)

log = logging.getLogger("peakpoint")

CLAIM = ".manifest"
"""Suffix of a staged manifest."""
Payload = Mapping[str, Callable[[Staged], object]]
"""Writers of the files of a checkpoint by path from the root; the first file gives it its name."""


class Store:
    """The checkpoints of one run under `root`, which is created when it is missing.

    Only files whose manifest names `run` are ever deleted. `index` has the manifests that were read already.
    Where other processes may write to the run's directory, hold `lock.one_writer` first. Raises
    CheckpointError when `root` or a tier in it cannot be written to, or is new and inside another.
    """

    def __init__(self, root: Path, run: str, index: Index | None = None) -> None:
        self._root = root
        self.run = run
        folder = root
        if not is_root(root):  # one that an earlier version made inside another is still resumed
            check_outside(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._make_missing()
            for folder in (root, root / TRAINING, root / MILESTONE):
                self._sweep(folder)
                probe = folder / f"{STAGED_PREFIX}{os.getpid()}-probe"
                probe.open("xb").close()
                probe.unlink()
            self._sync_folders()
        except OSError as error:
            raise CheckpointError(
                f"Checkpoints cannot be written to {folder}: {os_reason(error)}. "
                "Make it writable, or choose another directory."
            ) from None
        self._index = index or Index(root)
        self.sequence = max((m.sequence for m in self._index.manifests()), default=0)
        if self._index.unreadable(read_only=True):  # the journal has their sequences
            noted = [fact.get("sequence") for fact in journal.read(root)]
            self.sequence = max([self.sequence, *(n for n in noted if type(n) is int)])

    @property
    def root(self) -> Path:
        """Return the present folder of the tiers: a run's directory may be moved while it is written."""
        return present(self._root, or_named=True)

    def check_place(self) -> None:
        """Raise Gone when the run's directory was removed or moved out of reach."""
        try:
            present(self._root)
        except OSError as error:
            why = f"{error.filename} is not there any more: it was {error.strerror}"
            raise Gone(
                f"{why}. The run cannot be saved, so it ends: put the directory back, and resume from it."
            ) from None

    def _make_missing(self) -> list[Path]:
        """Make the missing folders, but none above `root`: that would hide a disk that was unmounted."""
        folders = (self.root, self.root / TRAINING, self.root / MILESTONE)
        missing = [folder for folder in folders if not folder.exists()]
        for folder in missing:
            folder.mkdir(exist_ok=True)
        return missing

    def _sync_folders(self) -> None:
        for folder in (self.root, self.root.parent):  # the tiers themselves must survive a power cut
            fsync_directory(folder)

    def mine(self) -> list[Manifest]:
        """Return every readable manifest of this run, oldest first; the folders are listed anew."""
        return [m for m in self._index.manifests() if m.run == self.run]

    def path(self, manifest: Manifest) -> Path:
        """Return the file of a checkpoint."""
        return self.root / manifest.file

    def free_name(self, tier: str, stem: str) -> str:
        """Return `<tier>/<stem>.pt`, with a number when a checkpoint has that name."""
        name, number = stem, 1
        while any((self.root / tier / f"{name}{end}").exists() for end in (".pt", ".json")):
            number += 1
            name = f"{stem}_{number}"
        return f"{tier}/{name}.pt"

    def next_sequence(self) -> int:
        """Count the sequence up and return it: it orders the checkpoints of this run."""
        self.sequence += 1
        return self.sequence

    def save(
        self,
        roles: Sequence[Manifest],
        produce: Callable[[Staged], object],
        *,
        expected: int | None = None,
    ) -> list[Manifest]:
        """Write a checkpoint once by `produce`, and give it the name of each role; all is durable on return.

        Returns the completed manifests. A role with a sequence keeps it. Folders that somebody removed are
        made again. Raises SaveFailed when the operating system refuses, and then leaves nothing partial under
        a final name; `expected` is the size in bytes for its message, None if unknown.
        """
        self.check_place()
        first, *others = roles
        try:
            if missing := self._make_missing():
                self._sync_folders()
                log.warning("%s was removed, with what was in it: it is made again.", missing[0])
            with stage(self.root, {first.file: produce}, SAVED_WITH) as staged:
                data = staged[first.file]
                first = self._commit_as_own(replace(first, bytes=data.size, digest=data.digest), data.publish)
        except OSError as error:
            raise failure(self.root, error, expected) from error
        return [first, *(self.share(first, role) for role in others)]

    def share(self, source: Manifest, role: Manifest) -> Manifest:
        """Give the bytes of `source` a second name: a hard link, or a copy where links do not work.

        Raises SaveFailed as `save` does.
        """
        done = replace(role, bytes=source.bytes, digest=source.digest)
        try:
            return self._commit_as_own(done, lambda target: files.link_or_copy(self.path(source), target))
        except OSError as error:
            raise failure(self.root, error, source.bytes) from error

    def _commit_as_own(self, manifest: Manifest, take_name: Callable[[Path], object]) -> Manifest:
        """Commit a file, named by `take_name`, as a checkpoint of this run under a free name."""
        manifest = replace(manifest, sequence=manifest.sequence or self.next_sequence())
        with briefly(self.root):
            mark = (self.root / manifest.file).with_suffix(".json")
            with contextlib.suppress(CheckpointError):
                # Another run may have taken the name since it was chosen.
                if mark.exists() and read_manifest(mark).run != self.run:
                    manifest = replace(manifest, file=self.free_name(manifest.tier, mark.stem))
            commit(self.root, manifest, {manifest.file: take_name})
        journal.append(self.root, "saved", manifest.file, "; ".join(manifest.reasons), manifest.sequence)
        return manifest

    def set_pointer(self, tier: str, pointer: str, manifest: Manifest) -> None:
        """Make the symlink `<tier>/<pointer>.pt` name a checkpoint; skipped where symlinks do not work."""
        link = self.root / tier / f"{pointer}.pt"
        if link.with_suffix(".json").exists():  # a checkpoint has this name
            return
        files.set_link(link, Path(manifest.file).name)

    def delete(self, manifest: Manifest, reason: str = "") -> None:
        """Delete a checkpoint of this run, its manifest first, so that no crash leaves one without bytes.

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
        journal.append(self.root, "deleted", manifest.file, reason, manifest.sequence)

    def delete_each(self, doomed: Mapping[Manifest, str]) -> list[Manifest]:
        """Delete checkpoints, each with the reason; returns those that are gone, and warns of the others."""
        gone = []
        for manifest, reason in doomed.items():
            try:
                self.delete(manifest, reason)
                gone.append(manifest)
            except OSError as error:
                log.warning(
                    "%s could not be deleted: %s. Training continues.", manifest.file, os_reason(error)
                )
        return gone

    def _sweep(self, folder: Path) -> None:
        """Undo the saves and complete the deletions that dead writers left unfinished in a folder.

        A file without a manifest is deleted only when a staged manifest of this run names it; any other was
        put there by somebody else.
        """
        for stray in folder.glob(f"{STAGED_PREFIX}*"):
            if not abandoned(stray):
                continue
            if stray.name.endswith(CLAIM) and (found := _claimed(stray)):
                file, run = found
                path = folder / file
                if not path.with_suffix(".json").exists() and path.is_file() and not path.is_symlink():
                    if run != self.run:
                        continue
                    path.unlink(missing_ok=True)
                    reason = "a save or a deletion of it was cut short"
                    journal.append(self.root, "swept", f"{folder.name}/{file}", reason)
            stray.unlink(missing_ok=True)


@contextlib.contextmanager
def stage(root: Path, payload: Payload, algorithm: str) -> Iterator[dict[str, Staged]]:
    """Write and sync the files of a checkpoint under staged names; yields them by path.

    A file that was not given its name by the end of the block is removed.
    """
    with contextlib.ExitStack() as stack:
        found = {name: stack.enter_context(Staged(root / name, algorithm=algorithm)) for name in payload}
        for name, produce in payload.items():
            produce(found[name])
            found[name].sync()
        yield found


def commit(
    root: Path,
    manifest: Manifest,
    payload: Mapping[str, Callable[[Path], object]],
    *,
    exclusive: bool = False,
) -> None:
    """Give the files of a checkpoint their names, then the manifest its own, which makes them a checkpoint.

    The manifest is synced under a staged name first: if this process dies before the end, the next start
    learns from it whose the files without a manifest are. On failure no file keeps its name, unless an
    earlier version had it. `exclusive` refuses an existing manifest. Raises OSError.
    """
    mark = (root / manifest.file).with_suffix(".json")
    again = not exclusive and mark.exists()
    made: list[Path] = []
    try:
        with Staged(mark, CLAIM) as claim:
            claim.write(manifest.to_json().encode())
            claim.sync()
            for name, take_name in payload.items():
                take_name(root / name)
                made.append(root / name)
            for folder in {path.parent for path in made} if exclusive else ():  # before the manifest
                fsync_directory(folder)
            (claim.create if exclusive else claim.publish)()
            made.append(mark)
        fsync_directory(mark.parent)
    except BaseException:
        for path in () if again else reversed(made):  # the manifest first
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _claimed(claim: Path) -> tuple[str, str] | None:
    """Return the file name and the run in a staged manifest; None when it was not written to its end."""
    try:
        raw = read_json(claim)
        return PurePosixPath(raw["file"]).name, str(raw["run"])
    except (CheckpointError, TypeError, KeyError):
        return None


def verify(root: Path, manifest: Manifest, threads: int = digests.ALL) -> None:
    """Check the bytes of a checkpoint, of a release every file, against its manifest.

    `threads` is 1 where a training runs beside it. Raises CheckpointError with the first fault,
    Undamaged where it says nothing of the bytes.
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
        raise unread(path, error) from None
