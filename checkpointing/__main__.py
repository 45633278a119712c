"""The command line: what a run has kept, why, and whether it is sound. Needs no torch.

python -m checkpointing ls RUN            a table of a run's checkpoints
python -m checkpointing show FILE         one checkpoint, its digest checked
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from checkpointing import store
from checkpointing.errors import CheckpointError
from checkpointing.manifest import Manifest, encode, read_manifest
from checkpointing.policy import MILESTONE, TRAINING


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m checkpointing", description="Look at checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="a table of a run's checkpoints: what is kept, and why")
    ls.add_argument("path", type=Path, metavar="RUN", help="a run directory, or its checkpoints folder")
    ls.add_argument("--verify", action="store_true", help="check every digest")
    ls.set_defaults(run=_ls)
    show = commands.add_parser("show", help="one checkpoint, its digest checked")
    show.add_argument("path", type=Path, metavar="FILE", help="a .pt file, or a link such as latest.pt")
    show.set_defaults(run=_show)
    for command in (ls, show):
        command.add_argument("--json", action="store_true", help="JSON instead of tables")
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `... | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def checkpoint_root(path: Path) -> Path:
    """The checkpoint folder of a run directory, or the folder itself. Raises CheckpointError."""
    for root in (path / "checkpoints", path):
        if (root / TRAINING).is_dir() or (root / MILESTONE).is_dir():
            return root
    raise CheckpointError(f"{path} has no checkpoints: name a run directory, such as outputs/RUN.")


def verdict(root: Path, manifest: Manifest) -> str | None:
    """None when a checkpoint's bytes match its manifest, else what is wrong."""
    try:
        store.verify(root, manifest)
    except CheckpointError as error:
        return str(error)
    return None


def as_json(manifest: Manifest, verified: bool | None) -> dict[str, Any]:
    """A manifest as plain JSON types, and whether its bytes were found sound (None: not looked at)."""
    plain = asdict(manifest)
    return {**plain, "metrics": {k: encode(v) for k, v in manifest.metrics.items()}, "verified": verified}


def _ls(options: argparse.Namespace) -> int:
    root = checkpoint_root(options.path)
    found = store.manifests(root)
    wrong = {m: verdict(root, m) for m in found} if options.verify else {}
    damaged = [*filter(None, wrong.values()), *(reason for _, reason in store.unreadable(root))]
    if options.json:
        checked = options.verify or None
        print(json.dumps([as_json(m, checked and wrong[m] is None) for m in found], indent=2))
        for reason in damaged:
            print(f"damaged: {reason}", file=sys.stderr)
        return int(bool(damaged))
    console = Console()
    for tier in (TRAINING, MILESTONE):
        members = [m for m in found if m.tier == tier]
        if members:
            console.print(_table(tier, members))
            console.print()
    if not found:
        _line(console, f"{root} holds no checkpoint yet.")
    total = sum({m.sha256: m.bytes for m in found}.values())
    _line(console, f"{len(found)} checkpoints, {total / 1e6:.1f} MB on disk, in {root}")
    for reason in damaged:
        _line(console, f"damaged: {reason}")
    return int(bool(damaged))


def _table(tier: str, members: list[Manifest]) -> Table:
    names = list(dict.fromkeys(name for m in members for name in m.metrics))
    table = Table(box=SIMPLE_HEAD, title=tier, title_justify="left", pad_edge=False, show_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("epoch", "step", *names, "sparsity", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for m in members:
        metrics = (f"{m.metrics[name]:.4f}" if name in m.metrics else "-" for name in names)
        sparsity = "-" if m.sparsity is None else f"{m.sparsity:.4f}"
        why = "; ".join(m.reasons)
        file = Path(m.file).name
        cells = (file, f"{m.epoch}", f"{m.global_step}", *metrics, sparsity, f"{m.bytes / 1e6:.1f}", why)
        table.add_row(*map(Text, cells))  # as Text: Rich takes words in brackets for styles
    return table


def _show(options: argparse.Namespace) -> int:
    path = options.path.resolve()
    if not path.exists():
        raise CheckpointError(f"{options.path} does not exist.")
    if not path.with_suffix(".json").exists():
        raise CheckpointError(f"{options.path} has no manifest beside it, so nothing vouches for it.")
    manifest = read_manifest(path.with_suffix(".json"))
    wrong = verdict(path.parent.parent, manifest)
    if options.json:
        print(json.dumps(as_json(manifest, wrong is None), indent=2))
        return int(wrong is not None)
    console = Console()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in as_json(manifest, wrong is None).items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, tuple | list):
            value = "; ".join(map(str, value))
        table.add_row(name, Text(f"{value}"))
    console.print(table, markup=False, highlight=False)
    if wrong:
        _line(console, f"damaged: {wrong}")
    return int(wrong is not None)


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
