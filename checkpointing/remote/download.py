"""Downloads a run from its mirror: a file gets its name once its digest is right, and overwrites none.

An interrupted download continues: the part of a file that is here stays under a staged name.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from peakpoint.base import digests, files
from peakpoint.base.bounded import LOG, read_bytes, read_json
from peakpoint.base.disk_space import failure, free_room, in_words
from peakpoint.base.errors import CheckpointError, SaveFailed, os_reason
from peakpoint.base.files import STAGED_PREFIX, Staged, fsync_directory, fsync_file, write_atomic
from peakpoint.base.lock import one_writer, try_lock
from peakpoint.base.text import in_short, json_text
from peakpoint.checkpointing.remote.client import Missing, Remote, RemoteError
from peakpoint.checkpointing.remote.layout import (
    MARK,
    Damaged,
    companion_digests,
    manifest_key,
    newest_record,
    read_index,
    read_mark,
    safe,
)
from peakpoint.checkpointing.storage import aliases, foreign, listing, store
from peakpoint.checkpointing.storage.manifest import PRODUCTION, TIERS, TRAINING, Manifest

TIMEOUT_S, ATTEMPTS = 20.0, 5
"""Seconds for each answer, and attempts of each operation, in commands and resumes."""

_FILES = re.compile(
    r"(run|status)\.json|metrics\.jsonl|\.hydra/(resume-\d+/)?[A-Za-z0-9_]+\.yaml"
    r"|checkpoints/metadata/(journal\.jsonl|CHANGELOG\.md)"
)
"""Paths in a record."""


@dataclass(frozen=True)
class Source:
    """A run's folder in a remote place, and the checkpoint in it that was asked for, if one was."""

    remote: Remote
    run: str
    name: str
    file: str | None = None


@dataclass
class Pulled:
    """The result of a download: files copied, files that were here, and the reason of each refusal."""

    copied: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def find(url: str, key: str = "URL") -> Source:
    """Return the run that a URL means: a run's folder, a place with one run, or a file in a run.

    Raises CheckpointError when there is none, or more than one.
    """
    remote = Remote(url, timeout_s=TIMEOUT_S, attempts=ATTEMPTS, key=key)
    parts = url.rstrip("/").split("/")
    file, local = None, Path(url.removeprefix("file://"))
    if len(parts) > 5 and parts[-3] == "checkpoints" and parts[-2] in TIERS:
        file, remote = "/".join(parts[-2:]), remote.above(3)
    elif parts[-1] == "checkpoints":
        remote = remote.above(1)
    elif local.is_file():
        raise CheckpointError(f"{remote.url} is not the folder of a run.{foreign.described(local)}")
    with contextlib.suppress(Missing):
        mark = read_mark(remote)
        return Source(remote, mark["run"], mark["name"], file)
    found = []
    for name in filter(safe, remote.folders()):
        with contextlib.suppress(Missing, Damaged):
            mark = read_mark(remote.below(name))
            found.append(Source(remote.below(name), mark["run"], mark["name"]))
    if not found:
        raise CheckpointError(
            f"{remote.url} holds no copies of a run: there is no {MARK} in it.{foreign.described(local)}"
        )
    if len(found) > 1:
        names = in_short([f"{source.remote.name} ({source.name})" for source in found])
        raise CheckpointError(f"{remote.url} holds {len(found)} runs: add one of them to the URL: {names}.")
    return found[0]


def pull(
    source: Source,
    directory: Path,
    *,
    tiers: Iterable[str] = TIERS,
    newest: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Pulled:
    """Copy a run, or what was asked for of it, to `directory`, and the record with a run.

    `newest`: only the newest checkpoint that is sound. Damaged ones are passed over. Nothing that is here is
    changed but logs that have grown. Raises CheckpointError when nothing is sound, RemoteError when the place
    cannot be reached.
    """
    sizes = source.remote.find("checkpoints")
    index, bad = read_index(source.remote, sizes)
    result = Pulled(refused=bad)
    chosen = [m for m in index.values() if m.tier in tiers]
    # The newest first; releases, which are ordered by the time of their making, after the other tiers.
    chosen.sort(key=lambda m: (m.tier != PRODUCTION, m.sequence, m.created), reverse=True)
    if source.file is not None:
        tier, _, name = source.file.partition("/")
        stem = name.rpartition(".")[0] or name
        chosen = [m for m in chosen if m.file == source.file] or [
            m for m in chosen if m.tier == tier and (stem == "latest" or stem in m.tags)
        ]
    root = directory / "checkpoints"
    have: dict[str, Path] = {}
    with _ours(source, directory):
        for manifest in chosen:
            try:
                new = _fetch(source.remote, root, manifest, sizes, have)
            except CheckpointError as error:
                if isinstance(error, RemoteError | SaveFailed) and not isinstance(error, Missing):
                    raise
                result.refused.append(str(error))
                continue
            except OSError as error:
                raise failure(root, error, manifest.bytes) from error
            (result.copied if new else result.there).append(manifest.file)
            have[manifest.digest] = root / manifest.file
            say(f"{'pulled' if new else 'here'}  {manifest.file}, {in_words(manifest.bytes)}")
            if newest or source.file is not None:
                break
        if not (result.copied or result.there):
            what = source.file or "checkpoint that is sound"
            why = f": {result.refused[0]}" if result.refused else "."
            raise CheckpointError(f"{source.remote.url} holds no {what}{why}")
        _write_record(source.remote, directory, result)
        _point(root)
    return result


@contextlib.contextmanager
def _ours(source: Source, directory: Path) -> Iterator[None]:
    """Lock a directory that is new, or of this run, for writing. Raises CheckpointError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        others = [p.name for p in directory.iterdir() if p.name not in (".lock", "train.log")]
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be written to: {os_reason(error)}.") from None
    if others and run_in(directory) != source.run:
        raise CheckpointError(f"{directory} is not empty, and not of this run: name a new directory.")
    with one_writer(directory):
        if not (directory / MARK).exists() and not (directory / "run.json").exists():
            mark = {"run": source.run, "name": source.name, "from": source.remote.url}
            write_atomic(directory / MARK, json_text(mark, indent=2) + "\n")
        yield


def run_in(directory: Path) -> str | None:
    """Return the run that a directory is of, or that is being pulled to it; None for anything else."""
    for name in ("run.json", MARK):
        with contextlib.suppress(CheckpointError, KeyError):
            return str(read_json(directory / name)["run"])
    return None


def _fetch(
    remote: Remote, root: Path, manifest: Manifest, sizes: Mapping[str, int], have: Mapping[str, Path]
) -> bool:
    """Copy one checkpoint and what belongs to it, its manifest last; False when it was here.

    `have` are files that are here and sound, by digest: another role of one of them is a link.
    """
    mark = manifest_key(manifest.file)
    text = remote.read(f"checkpoints/{mark}")
    if (root / mark).exists():
        if read_bytes(root / mark) != text:
            raise CheckpointError(
                f"{root / mark} is here and differs from that of the mirror: left as it is."
            )
        store.verify(root, manifest)
        return False
    wanted = {**companion_digests(manifest), manifest.file: manifest.digest}
    for file, digest in wanted.items():
        if file not in sizes:
            raise CheckpointError(f"{remote.url} lacks {file}, which belongs to {manifest.file}.")
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        if digest in have and not (root / file).exists():
            with contextlib.suppress(OSError):
                (root / file).hardlink_to(have[digest])
        _download(remote, f"checkpoints/{file}", root / file, digest, sizes[file])
    if f"{mark}.sig" in sizes:
        _create(root / f"{mark}.sig", remote.read(f"checkpoints/{mark}.sig", 1 << 20))
    _create(root / mark, text)
    fsync_directory(root)
    return True


def _create(path: Path, data: bytes) -> None:
    """Write a small file durably. Raises CheckpointError when another is there."""
    with Staged(path) as staged:
        staged.write(data)
        staged.sync()
        with contextlib.suppress(FileExistsError):
            staged.create()
    fsync_directory(path.parent)
    if read_bytes(path) != data:
        raise CheckpointError(f"{path} is here and differs from that of the mirror: it is left as it is.")


def _download(remote: Remote, key: str, path: Path, digest: str, size: int) -> None:
    """Download a file, which gets its name once its digest is right; continues an earlier half."""
    if path.exists():
        if path.stat().st_size != size or not digests.matches(path, digest):
            raise CheckpointError(f"{path} is here and differs from that of the mirror: it is left as it is.")
        return
    part = path.with_name(f"{STAGED_PREFIX}pull-{digest[-32:]}")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "r+b") as file:
        try_lock(descriptor)  # or a sweep would take it for what a dead writer left
        for attempt in range(2):
            file.flush()
            if attempt or os.fstat(descriptor).st_size > size:
                os.ftruncate(descriptor, 0)
            file.seek(0)
            found = digests.hasher(digests.algorithm_of(digest))
            while piece := file.read(1 << 20):
                found.update(piece)
            have = file.tell()
            free, _ = free_room(path.parent)
            if free is not None and free < size - have:
                need = size - have
                raise SaveFailed(
                    f"{path} takes {in_words(need)} more, and {in_words(free)} are free: make room.",
                    needed=need,
                    free=free,
                    errno=errno.ENOSPC,
                )
            for piece in remote.chunks(key, have, size):
                file.write(piece)
                found.update(piece)
            if digests.named(found) == digest:
                break
        else:
            part.unlink(missing_ok=True)
            raise CheckpointError(f"{remote.url}/{key} does not match its digest: it is damaged there.")
        file.flush()
        fsync_file(descriptor, path)
    part.rename(path)  # nobody else writes here
    fsync_directory(path.parent)


def _write_record(remote: Remote, directory: Path, result: Pulled) -> None:
    """Write the texts beside the checkpoints, unless those that are here differ from them."""
    _, texts = newest_record(remote)
    for name in [n for n in texts if not _FILES.fullmatch(n)]:
        result.refused.append(f"{remote.url} has {name!r} in its record: it is not written here.")
        del texts[name]
    for name, text in texts.items():
        path = directory / name
        if name.endswith(".jsonl") and path.exists() and not text.encode().startswith(read_bytes(path, LOG)):
            return  # this directory has continued by itself
    for name, text in sorted(texts.items(), key=lambda item: item[0] == "run.json"):  # the last: all is here
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or read_bytes(path, LOG) != text.encode():
            write_atomic(path, text)


def _point(root: Path) -> None:
    """Set the pointers for people, as the run had them."""
    for manifest in listing.manifests(root):  # oldest first, so that the newest wins
        for name in ("latest",) if manifest.tier == TRAINING else manifest.tags:
            link = root / manifest.tier / f"{name}.pt"
            if not link.with_suffix(".json").exists():
                files.set_link(link, Path(manifest.file).name)
    aliases.point_latest(root)
    with contextlib.suppress(CheckpointError):
        for alias, version in aliases.current(root).items():
            aliases.set_pointer(root, alias, version)
