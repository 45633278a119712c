"""The mirror of one run: what it holds, what is uploaded, and what may be deleted.

    URL/<run>/mirror.json                  says whose folder this is; <run> is the id in every manifest
    URL/<run>/record/000007.json           run.json, .hydra, metrics, journal: for a resume, of one moment
    URL/<run>/checkpoints/<tier>/x.pt      the bytes, read back and compared before
    URL/<run>/checkpoints/<tier>/x.json    the manifest is written: it is the commit mark there, as it is here
    URL/<run>/pointers/...                 the newest of each role, for others: nothing here relies on them

A folder for each run, so that runs that share a URL cannot touch each other. An object is never changed in
place where something relies on it, so there is no moment at which the place holds less than before.
"""

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from peakpoint.base import files, semver
from peakpoint.base.bounded import LOG, Absent, opened, read_bytes
from peakpoint.base.digests import matches
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.lock import try_lock
from peakpoint.base.text import SMALL, json_text, utc_now
from peakpoint.checkpointing.remote.client import Differs, Missing, Remote, RemoteError
from peakpoint.checkpointing.remote.layout import (
    FORMAT,
    MARK,
    Damaged,
    companion_digests,
    manifest_key,
    newest_record,
    number,
    read_index,
    read_mark,
    record_of,
)
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.manifest import (
    LARGEST,
    MILESTONE,
    PRODUCTION,
    TRAINING,
    Manifest,
    sealed,
)

log = logging.getLogger("peakpoint")

SIGNATURE = 1 << 20
"""Largest signature in bytes."""


class Unsound(CheckpointError):  # noqa: N818 (the name says what is wrong)
    """A file that is not uploaded: another try would not help."""


def chosen(
    root: Path, found: Iterable[Manifest], what: Collection[str], run: str | None = None
) -> list[Manifest]:
    """Return the checkpoints among `found` (of `run`) to upload, in that order, then the releases.

    `what` names tiers, roles, and policies that saved them.
    """
    mine = [m for m in found if run in (None, m.run)]
    return [
        m
        for m in (*mine, *listing.releases(root))
        if not {m.tier, *m.tags, *m.policies}.isdisjoint(what) and (root / m.file).exists()
    ]


class RemoteRun:
    """The folder of one run in a remote place; `open` it first. Every method raises RemoteError."""

    def __init__(self, remote: Remote, run: str) -> None:
        self.remote = remote.below(run)
        self.run = run
        self.index: dict[str, Manifest] = {}
        self._sizes: dict[str, int] = {}
        self._pointed: dict[str, str] = {}
        self._record: tuple[int, Mapping[str, str]] = (0, {})
        self._too_large = False

    def open(self, name: str) -> None:
        """Read what is there; `name` is that of the run's directory, for people."""
        try:
            mark = read_mark(self.remote)
        except (Missing, Damaged):  # an upload may have been cut off, or spoilt and never tried again
            mark = {"format": FORMAT, "run": self.run, "name": name}
            self.remote.write(MARK, sealed(json_text(mark, indent=2)).encode())
        if mark["run"] != self.run:
            raise RemoteError(f"{self.remote.url} is the mirror of run {mark['run']}, not of {self.run}.")
        self._sizes = self.remote.find("checkpoints")
        self.index, _ = read_index(self.remote, self._sizes)
        self._record = newest_record(self.remote)

    def holds(self, manifest: Manifest) -> bool:
        """Return whether a checkpoint is there; its manifest is written once its bytes were verified."""
        there = self.index.get(manifest.file)
        return there is not None and there.digest == manifest.digest

    def check(self, manifest: Manifest) -> bool:
        """Read a checkpoint that is there; one that is damaged does not count as there any more."""
        try:
            self.remote.verify(f"checkpoints/{manifest.file}", manifest.digest, manifest.bytes)
            for file, digest in companion_digests(manifest).items():
                self.remote.verify(f"checkpoints/{file}", digest, self._sizes.get(file, 0))
        except (Missing, Differs):
            self.index.pop(manifest.file, None)
            return False
        return True

    def put(self, root: Path, manifest: Manifest) -> None:
        """Copy one checkpoint and what belongs to it; once it is verified there, its manifest.

        Raises Unsound when it cannot be copied, and FileNotFoundError when it was deleted meanwhile.
        """
        mark = manifest_key(manifest.file)
        try:
            text = read_bytes(root / mark, LARGEST)
        except Absent:
            raise FileNotFoundError(root / mark) from None
        self._replace_older(manifest)
        for file, digest in companion_digests(manifest).items():
            path = root / file
            if not _is_file(path):
                raise Unsound(f"{manifest.file} lacks {file}, which belongs to it: it is not uploaded.")
            size = path.stat().st_size
            self._put_file(f"checkpoints/{file}", path, digest, size)
        twin = next((m.file for m in self.index.values() if m.digest == manifest.digest), None)
        if (root / manifest.file).is_symlink():
            raise Unsound(f"{manifest.file} is a link, and no file of its own: it is not uploaded.")
        with hard_link(root / manifest.file) as path:
            try:
                self._put_file(f"checkpoints/{manifest.file}", path, manifest.digest, manifest.bytes, twin)
            except Unsound:
                if locate.verdict(root, manifest) is not None:
                    raise
                return  # it was deleted or written anew meanwhile, and then has a turn of its own
        self.put_signature(root, manifest)
        self.remote.write(f"checkpoints/{mark}", text)
        self.index[manifest.file] = manifest
        self._sizes[manifest.file] = manifest.bytes

    def put_signature(self, root: Path, manifest: Manifest) -> None:
        """Copy the signature of a manifest, if it has one that is not there."""
        signature = f"{manifest_key(manifest.file)}.sig"
        if signature not in self._sizes and _is_file(root / signature):
            data = read_bytes(root / signature, SIGNATURE)
            self.remote.write(f"checkpoints/{signature}", data)
            self._sizes[signature] = len(data)

    def _put_file(self, key: str, path: Path, digest: str, size: int, twin: str | None = None) -> None:
        if twin is not None:  # the same bytes in another role
            with contextlib.suppress(RemoteError):
                self.remote.copy(f"checkpoints/{twin}", key)
                self.remote.verify(key, digest, size)
                return
        try:
            self.remote.upload(key, path, digest, size)
        except RemoteError:
            if path.exists() and (path.stat().st_size != size or not matches(path, digest)):
                raise Unsound(
                    f"{key.removeprefix('checkpoints/')} is damaged here, so it is not uploaded: "
                    "peakpoint repair RUN sets it aside."
                ) from None
            raise

    def _replace_older(self, manifest: Manifest) -> None:
        """Delete an older checkpoint of this name there. Raises Unsound for one that is not older."""
        there = self.index.get(manifest.file)
        if there is None or there.digest == manifest.digest:
            return
        if manifest.tier == PRODUCTION or there.sequence >= manifest.sequence:
            raise Unsound(
                f"{self.remote.url} holds another {manifest.file}, which is not older: it is left alone. "
                "Does another machine continue the same run?"
            )
        self._remove(there)

    def put_record(self, root: Path) -> bool:
        """Upload what a resume needs beside checkpoints; returns whether it had changed.

        One that is too large to be read again is not uploaded: a warning says so, and the one before stays.
        """
        found = record_of(root)
        newest, before = self._record
        if not found or found == before:
            return False
        newest += 1
        facts = {"format": FORMAT, "run": self.run, "time": utc_now(), "files": found}
        text = sealed(json_text(facts, LOG, indent=1)).encode()
        if len(text) > SMALL:
            if not self._too_large:
                log.warning(
                    "The record of the run is not uploaded to %s: run.json, .hydra and the logs have %s, and "
                    "a record %s at most. The one before stays; checkpoints are uploaded.",
                    *(self.remote.url, in_words(len(text)), in_words(SMALL)),
                )
            self._too_large = True
            return False
        self.remote.write(f"record/{newest:06d}.json", text)
        self._record = (newest, found)
        for key in self.remote.find("record"):  # the one before stays until the next time
            if number(key) < newest - 1:
                self.remote.delete(f"record/{key}")
        return True

    def write_pointers(self) -> None:
        """Write pointers to the newest verified checkpoint of each role, and of all."""
        targets: dict[str, Manifest] = {}
        for manifest in sorted(self.index.values(), key=lambda m: m.sequence):
            if manifest.tier == PRODUCTION:
                continue
            targets["latest"] = manifest
            if manifest.tier == MILESTONE:
                targets |= {f"milestone/{tag}": manifest for tag in manifest.tags}
        releases = [m for m in self.index.values() if m.tier == PRODUCTION]
        with contextlib.suppress(CheckpointError):  # a name that is no version
            if releases:
                newest = max(releases, key=lambda m: semver.key(listing.version_of(m)))
                targets["production/latest"] = newest
        for name, manifest in targets.items():
            if self._pointed.get(name) != manifest.digest + manifest.file:
                facts: dict[str, str | int] = {
                    "file": f"checkpoints/{manifest.file}",
                    "digest": manifest.digest,
                }
                facts |= {"bytes": manifest.bytes, "epoch": manifest.epoch, "step": manifest.global_step}
                self.remote.write(f"pointers/{name}.json", sealed(json_text(facts, indent=2)).encode())
                self._pointed[name] = manifest.digest + manifest.file

    def delete_older(self, here: Collection[str], keep: int | None) -> list[str]:
        """Delete there what is neither `here` nor among the `keep` newest of one of its roles; None: nothing.

        Only what this run wrote, never a release, and only when what came after it is still there.
        """
        gone: list[str] = []
        if keep is None:
            return gone
        mine = [m for m in self.index.values() if m.tier != PRODUCTION and m.run == self.run]
        mine.sort(key=lambda m: m.sequence)
        by_role: dict[str, list[Manifest]] = {}
        for manifest in mine:
            for tag in manifest.tags:
                by_role.setdefault(tag, []).append(manifest)
        kept = {m.file for role in by_role.values() for m in role[-keep:]} | set(here)
        for manifest in mine:
            heirs = [by_role[tag][-1] for tag in manifest.tags]
            if manifest.file not in kept and all(self._is_there(heir) for heir in heirs):
                self._remove(manifest)
                gone.append(manifest.file)
        return gone

    def sweep(self, here: Collection[str]) -> None:
        """Delete bytes there that have no manifest: of uploads that were cut short and are not repeated.

        One that only could not be read, or that a list left out, may be sound: it is asked for by its name.
        """
        for key in [k for k in self._sizes if k not in {*here, *self.index} and not k.endswith(".json")]:
            if key.partition("/")[0] in (TRAINING, MILESTONE) and manifest_key(key) not in self._sizes:
                try:
                    self.remote.read(f"checkpoints/{manifest_key(key)}")
                except Missing:
                    self.remote.delete(f"checkpoints/{key}")

    def _is_there(self, manifest: Manifest) -> bool:
        under, _, name = f"checkpoints/{manifest.file}".rpartition("/")
        return self.remote.find(under).get(name) == manifest.bytes

    def _remove(self, manifest: Manifest) -> None:
        self.remote.delete(f"checkpoints/{manifest_key(manifest.file)}")
        self.index.pop(manifest.file, None)
        self.remote.delete(f"checkpoints/{manifest.file}")
        self._sizes.pop(manifest.file, None)


def _is_file(path: Path) -> bool:
    """Return whether there is a regular file: a link could lead to a private one."""
    return path.is_file() and not path.is_symlink()


@contextlib.contextmanager
def hard_link(path: Path) -> Iterator[Path]:
    """Yield a second name for a file, so that it can be read to its end though retention deletes it."""
    link = files.staged_name(path)
    try:
        link.hardlink_to(path)
    except FileNotFoundError:
        raise
    except OSError:  # no links here: a file that goes is one that need not be copied
        yield path
        return
    try:
        with opened(link) as file:
            try_lock(file.fileno())  # or a sweep would take it for what a dead writer left
            yield link
    finally:
        link.unlink(missing_ok=True)
