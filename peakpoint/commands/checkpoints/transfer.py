"""push and pull: a run's checkpoints to a remote place and back. unpack: the dense file of one of them."""

import argparse
import contextlib
from pathlib import Path

from peakpoint.base.bounded import read_json
from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import Staged, check_folder, check_new, fsync_directory
from peakpoint.base.terminal import Console
from peakpoint.base.text import nearest
from peakpoint.checkpointing.remote import download
from peakpoint.checkpointing.remote.client import Remote, RemoteError
from peakpoint.checkpointing.remote.upload import RemoteRun, chosen
from peakpoint.checkpointing.storage import foreign, listing
from peakpoint.checkpointing.storage.listing import releases
from peakpoint.checkpointing.storage.manifest import MILESTONE, PRODUCTION, TIERS, Manifest
from peakpoint.checkpointing.storage.naming import safe_name
from peakpoint.commands.arguments import RUN, Argument, number, path_argument, takes
from peakpoint.commands.common import checkpoint_root, contents, print_json, run_of


@takes(
    RUN,
    Argument("url", metavar="URL", help="as checkpoint.mirror.url: s3://bucket/folder"),
    Argument("--what", metavar="A,B", help="tiers, roles, policies; what the run mirrors, and releases"),
    Argument("--verify", action="store_true", help="read what is there, and repair it"),
    Argument(
        "--timeout",
        type=number(float, 0.001, 86_400),
        default=20,
        metavar="S",
        help="for each answer of the server",
    ),
)
def push(options: argparse.Namespace) -> int:
    """Upload the missing checkpoints; 1 when one is refused."""
    root = checkpoint_root(options.path)
    found = listing.manifests(root)
    if options.what:
        _check_named(options.what.split(","), root, found)
    remote = Remote(options.url, timeout_s=options.timeout, attempts=download.ATTEMPTS)
    run, what = _run(root)
    if remote.name == run:
        remote = remote.above(1)
    if remote.folder:
        check_folder(remote.folder)
        listing.check_outside(remote.folder / run)
        listing.check_apart(remote.folder, run_of(root))
    what = options.what.split(",") if options.what else what
    console = Console(quiet=options.json)
    copies = RemoteRun(remote, run)
    copies.open(run_of(root.absolute()).name)
    copies.put_record(root)
    copied: list[str] = []
    there: list[str] = []
    refused: list[str] = []
    for manifest in reversed(chosen(root, found, what)):
        try:
            new = not copies.holds(manifest) or (options.verify and not copies.check(manifest))
            if new:
                copies.put(root, manifest)
                copies.write_pointers()
            copies.put_signature(root, manifest)
        except RemoteError:
            raise
        except FileNotFoundError:  # the run has deleted it meanwhile
            continue
        except CheckpointError as error:
            refused.append(str(error))
            console.say(f"refused  {error}")
            continue
        (copied if new else there).append(manifest.file)
        if new:
            console.say(f"pushed  {manifest.file}, {in_words(manifest.bytes)}")
    copies.write_pointers()
    copies.put_record(root)
    where = copies.remote.url
    console.say(f"{len(copied)} copied, {len(there)} were there, {len(refused)} refused, in {where}")
    if options.json:
        print_json({"url": where, "copied": copied, "there": there, "refused": refused})
    return int(bool(refused))


def _check_named(words: list[str], root: Path, found: list[Manifest]) -> None:
    """Raise CheckpointError for a word of --what that is no tier, role or policy of this run."""
    known = {
        *TIERS,
        *(name for m in [*found, *releases(root)] for name in (*m.tags, *filter(None, m.policies))),
    }
    for word in words:
        if word not in known:
            raise CheckpointError(f"--what {word} names nothing of {root}{nearest(word, known)}")


def _run(root: Path) -> tuple[str, list[str]]:
    """Return the id of the run, and the default of --what: what its mirror uploads, and releases."""
    from peakpoint.trainer.config.hydra_overrides import (
        current_config,  # late: Hydra costs a tenth of a second
    )

    what = [MILESTONE]
    with contextlib.suppress(CheckpointError, TypeError, KeyError, AttributeError):
        record = read_json(run_of(root) / "run.json")
        recorded = current_config(record.get("config", {})).get("checkpoint", {}).get("mirror", {})
        what = list(map(str, recorded.get("what") or what))
        return safe_name(str(record["run"])), [*what, PRODUCTION]
    runs = {m.run for m in listing.manifests(root)}
    name = runs.pop() if len(runs) == 1 else run_of(root.absolute()).name
    return safe_name(name), [*what, PRODUCTION]


@takes(
    Argument("url", metavar="URL", help="of a run, of a place with one run, or of a .pt in a run"),
    path_argument("directory", "DIR", "a new directory, or that of an earlier pull of the run"),
    Argument("--newest", action="store_true", help="only the newest checkpoint that is sound"),
)
def pull(options: argparse.Namespace) -> int:
    """Download a run, or a file, to a directory; 1 when one of its files is damaged."""
    console = Console(quiet=options.json)
    check_folder(options.directory)
    listing.check_outside(options.directory)
    source = download.find(options.url)
    if source.remote.folder:
        listing.check_apart(source.remote.folder, options.directory)
    done = download.pull(source, options.directory, newest=options.newest, say=console.say)
    for reason in done.refused:
        console.say(f"refused  {reason}")
    console.say(
        f"{len(done.copied)} copied, {len(done.there)} were here, {len(done.refused)} refused, "
        f"in {options.directory}",
    )
    if options.json:
        facts = {"copied": done.copied, "there": done.there, "refused": done.refused}
        print_json({"directory": str(options.directory), "run": source.run, **facts})
    return int(bool(done.refused))


@takes(
    path_argument("path", "FILE", "a .pt file"),
    path_argument("out", "OUT", "the file to write; it must not exist"),
)
def unpack(options: argparse.Namespace) -> int:
    """Write the dense `.pt` of a checkpoint, whole or not at all; an existing file is never replaced."""
    source, target = options.path, options.out
    check_new(target)
    listing.check_outside(target)
    if not source.is_file():
        raise CheckpointError(f"{source} is no file: name a .pt file.{foreign.described(source)}")
    from peakpoint.checkpointing.state import serialize  # late: it needs torch

    state, manifest = contents(source)
    if manifest is None and foreign.recognise(source) != foreign.OURS:
        raise CheckpointError(f"{source} is not a checkpoint of Peakpoint.{foreign.described(source)}")
    with Staged(target) as staged:
        serialize.dump(state, staged)
        staged.sync()
        try:
            staged.create()
        except FileExistsError:
            raise CheckpointError(f"{target} exists: choose another name.") from None
    fsync_directory(target.parent)
    sizes = [path.stat().st_size for path in (source, target)]
    if options.json:
        print_json({"file": str(target), "bytes": sizes[1], "packed_bytes": sizes[0]})
    else:
        Console().say(f"{target}: {in_words(sizes[1])}, from {in_words(sizes[0])}")
    return 0
