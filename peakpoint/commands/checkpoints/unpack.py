"""unpack: the dense file of a compressed checkpoint. Imports torch when called."""

import argparse
from pathlib import Path

from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import Staged, check_new, fsync_directory
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import foreign
from peakpoint.commands.arguments import Parser, add_path
from peakpoint.commands.common import contents, megabytes, print_json


def unpack_arguments(parser: Parser) -> None:
    """Add the arguments of `unpack`."""
    add_path(parser, "path", "FILE", "a .pt file")
    add_path(parser, "out", "OUT", "the file to write; it must not exist")


def unpack(options: argparse.Namespace) -> int:
    """Write the dense `.pt` of a checkpoint, whole or not at all; an existing file is never replaced."""
    source, target = options.path, options.out
    check_new(target)
    if not source.is_file():
        raise CheckpointError(f"{source} is no file: name a .pt file.{foreign.described(source)}")
    from peakpoint.checkpointing.state import serialize

    state, manifest = contents(source)
    if manifest is None and foreign.recognise(source) != foreign.OURS:
        raise CheckpointError(f"{source} is not a checkpoint of Peakpoint.{foreign.described(source)}")
    with Staged(target) as staged:
        serialize.dump(state, staged.file)
        staged.sync()
        _name(staged, target)
    fsync_directory(target.parent)
    sizes = [path.stat().st_size for path in (source, target)]
    if options.json:
        print_json({"file": str(target), "bytes": sizes[1], "packed_bytes": sizes[0]})
    else:
        Console().say(f"{target}: {megabytes(sizes[1])}, from {megabytes(sizes[0])}")
    return 0


def _name(staged: Staged, target: Path) -> None:
    try:
        target.hardlink_to(staged.path)  # unlike a rename it never replaces
    except FileExistsError:
        raise CheckpointError(f"{target} exists: choose another name.") from None
    except OSError:  # a filesystem without links
        staged.publish(target)
