"""ls and show: the checkpoints of a run, with the reasons to keep them."""

import argparse
from pathlib import Path

from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.storage import aliases
from peakpoint.checkpointing.storage.manifest import PRODUCTION, TIERS, Manifest
from peakpoint.commands.arguments import Parser, add_path
from peakpoint.commands.common import as_json, checkpoint_roots, everything, manifest_of, print_json, verdict


def ls_arguments(parser: Parser) -> None:
    """Add the arguments of `ls`."""
    add_path(parser, "path", "RUN", "a run directory, its checkpoints folder, or a tree of runs")
    parser.add_argument("--verify", action="store_true", help="check every digest")


def show_arguments(parser: Parser) -> None:
    """Add the arguments of `show`."""
    add_path(parser, "path", "FILE", "a .pt file, or a link such as latest.pt")


def ls(options: argparse.Namespace) -> int:
    """Print a table of the checkpoints of a run, or of each run of a tree."""
    console, listed, bad = Console(), [], []
    for root in checkpoint_roots(options.path):
        found, unreadable = everything(root)
        wrong = {m: verdict(root, m) for m in found} if options.verify else {}
        damaged = [*filter(None, wrong.values()), *(reason for _, reason in unreadable)]
        names, doubt = _names(root, found)
        damaged += doubt
        bad += damaged
        if options.json:
            checked = options.verify or None
            listed += [
                {**as_json(root, m, checked and wrong[m] is None), "aliases": names.get(m, [])} for m in found
            ]
        else:
            _print(console, root, found, names, damaged)
    if options.json:
        print_json(listed)
        for reason in bad:
            Console(stderr=True).say(f"damaged: {reason}")
    return int(bool(bad))


def _names(root: Path, found: list[Manifest]) -> tuple[dict[Manifest, list[str]], list[str]]:
    """Return the aliases of each release, and the problems of the journal that holds them."""
    try:
        current = aliases.current(root)
    except CheckpointError as error:
        return {}, [str(error)]
    by_version = {m.tags[0]: m for m in found if m.tier == PRODUCTION}
    names: dict[Manifest, list[str]] = {}
    for alias, version in sorted(current.items()):
        if f"v{version}" in by_version:
            names.setdefault(by_version[f"v{version}"], []).append(alias)
    return names, []


def _print(
    console: Console,
    root: Path,
    found: list[Manifest],
    names: dict[Manifest, list[str]],
    damaged: list[str],
) -> None:
    for tier in TIERS:
        members = [m for m in found if m.tier == tier]
        if members:
            columns, rows = _rows(members, names)
            console.table(columns, rows, title=tier, words=["why"])
            console.say("")
    if not found:
        console.say(f"{root} holds no checkpoint yet.")
    total = sum({m.digest: m.bytes for m in found}.values())
    console.say(f"{len(found)} checkpoints, {total / 1e6:.1f} MB on disk, in {root}")
    for reason in damaged:
        console.say(f"damaged: {reason}")


def _rows(members: list[Manifest], names: dict[Manifest, list[str]]) -> tuple[list[str], list[list[object]]]:
    """Return the columns and rows of a table of checkpoints."""
    metrics = list(dict.fromkeys(name for m in members for name in m.metrics))
    rows: list[list[object]] = []
    for m in members:
        values = [f"{m.metrics[name]:.4f}" if name in m.metrics else "-" for name in metrics]
        sparsity = "-" if m.sparsity is None else f"{m.sparsity:.4f}"
        why = "; ".join([*names.get(m, []), *m.reasons])
        where = (Path(m.file).name, m.epoch, m.global_step)
        rows.append([*where, *values, sparsity, f"{m.bytes / 1e6:.1f}", why])
    return ["file", "epoch", "step", *metrics, "sparsity", "MB", "why"], rows


def show(options: argparse.Namespace) -> int:
    """Print one checkpoint, its digest checked."""
    root, manifest = manifest_of(options.path)
    wrong = verdict(root, manifest)
    plain = as_json(root, manifest, wrong is None)
    if options.json:
        print_json(plain)
        return int(wrong is not None)
    console = Console()
    for name, value in plain.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, tuple | list):
            value = "; ".join(map(str, value))
        console.say(f"{name:<{max(map(len, plain))}}  {value}")
    if wrong:
        console.say(f"damaged: {wrong}")
    return int(wrong is not None)
