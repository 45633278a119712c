"""ls and show: the checkpoints of a run, with the reasons to keep them. diff: the differences of two."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.terminal import Console
from peakpoint.checkpointing.metrics import shown
from peakpoint.checkpointing.state.differences import differ, flat, pairs
from peakpoint.checkpointing.storage import aliases, foreign
from peakpoint.checkpointing.storage.manifest import PRODUCTION, TIERS, Manifest
from peakpoint.commands.arguments import Argument, path_argument, takes
from peakpoint.commands.common import (
    as_json,
    check_there,
    checkpoint_root,
    checkpoint_roots,
    contents,
    everything,
    manifest_of,
    newest_sound,
    print_json,
    verdict,
)

if TYPE_CHECKING:
    from torch import Tensor

MODEL = "model_state_dict"


@takes(
    path_argument("path", "RUN", "a run directory, its checkpoints folder, or a tree of runs"),
    Argument("--verify", action="store_true", help="check every digest"),
)
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
    console.say(f"{len(found)} checkpoints, {in_words(total)} on disk, in {root}")
    for reason in damaged:
        console.say(f"damaged: {reason}")


def _rows(members: list[Manifest], names: dict[Manifest, list[str]]) -> tuple[list[str], list[list[object]]]:
    """Return the columns and rows of a table of checkpoints."""
    metrics = list(dict.fromkeys(name for m in members for name in m.metrics))
    rows: list[list[object]] = []
    for m in members:
        values = [shown(name, m.metrics.get(name)) for name in metrics]
        sparsity = shown("sparsity", m.sparsity)
        why = "; ".join([*names.get(m, []), *m.reasons])
        where = (Path(m.file).name, m.epoch, m.global_step)
        rows.append([*where, *values, sparsity, in_words(m.bytes), why])
    return ["file", "epoch", "step", *metrics, "sparsity", "size", "why"], rows


@takes(path_argument("path", "FILE", "a .pt file, or a link such as latest.pt"))
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


@takes(*(path_argument(name, name.upper(), "a .pt file, or a run") for name in ("a", "b")))
def diff(options: argparse.Namespace) -> int:
    """Compare two checkpoint files, or the records of two runs; beside a file a run means its newest."""
    if (options.a / "run.json").is_file() and (options.b / "run.json").is_file():
        from peakpoint.commands import record  # late: Hydra costs a fifth of a second

        return record.diff_records(options.a, options.b, json=options.json)
    (path_a, a, of_a), (path_b, b, of_b) = (_read(path) for path in (options.a, options.b))
    found: dict[str, Any] = {
        "a": str(path_a),
        "b": str(path_b),
        "position": differ(_position(a), _position(b)),
        "config": differ(flat(a.get("config", {})), flat(b.get("config", {}))),
        "optimizer": differ(_settings(a), _settings(b)),
        "metrics": pairs(a.get("metrics", {}), b.get("metrics", {})),
        "sparsity": [m and m.sparsity for m in (of_a, of_b)],
    }
    layers = list(_layers(a[MODEL], b[MODEL]))
    shared = sum(layer["shared_zeros"] for layer in layers if layer["matrix"])
    either = sum(layer["either_zeros"] for layer in layers if layer["matrix"])
    found |= {"mask_overlap": shared / either if either else None, "layers": layers}
    if options.json:
        print_json(found)
    else:
        _print_differences(found)
    return 0


def _read(path: Path) -> tuple[Path, dict[str, Any], Manifest | None]:
    """Return the file, its contents and its manifest if it has one. Raises CheckpointError."""
    check_there(path)
    if path.is_dir():
        root = checkpoint_root(path)
        path = root / newest_sound(root).file
    state, manifest = contents(path)
    if not isinstance(state.get(MODEL), dict):
        raise CheckpointError(
            f"{path} has no {MODEL}: it is not a checkpoint of a training run.{foreign.described(path)}"
        )
    return path, state, manifest


def _position(state: dict[str, Any]) -> dict[str, Any]:
    return {name: state.get(name) for name in ("epoch", "global_step")}


def _settings(state: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the optimizer by group, without its moments."""
    optimizer = state.get("optimizer_state_dict", {})
    groups = enumerate(optimizer.get("param_groups", []))
    settings = {str(n): {k: v for k, v in group.items() if k != "params"} for n, group in groups}
    pruning = optimizer.get("pruning", {}).get("settings", {})
    return flat({"group": settings, "pruning": pruning})


def _layers(a: "dict[str, Tensor]", b: "dict[str, Tensor]") -> Iterator[dict[str, Any]]:
    """Yield norms, relative change and shared zeros of each floating-point tensor of the network."""
    for name in dict.fromkeys([*a, *b]):
        pair = [state.get(name) for state in (a, b)]
        if not all(t is None or (hasattr(t, "is_floating_point") and t.is_floating_point()) for t in pair):
            continue
        left, right = pair
        norms = [None if t is None else t.double().norm().item() for t in pair]
        shapes = [None if t is None else list(t.shape) for t in pair]
        change, shared, either = None, 0, 0
        if left is not None and right is not None and left.shape == right.shape:
            moved = (right.double() - left.double()).norm().item()
            change = moved / norms[0] if norms[0] else (0.0 if moved == 0 else float("inf"))
            zeros = left == 0, right == 0
            shared, either = int((zeros[0] & zeros[1]).sum()), int((zeros[0] | zeros[1]).sum())
        yield {
            "name": name,
            "shapes": shapes,
            "norms": norms,
            "change": change,
            "matrix": any(s is not None and len(s) > 1 for s in shapes),
            "mask_overlap": shared / either if either else None,
            "shared_zeros": shared,
            "either_zeros": either,
        }


def _print_differences(found: dict[str, Any]) -> None:
    console = Console()
    console.say(f"a  {found['a']}")
    console.say(f"b  {found['b']}")
    for title in ("position", "config", "optimizer", "metrics"):
        if found[title]:
            rows = [[key, *map(_short, pair)] for key, pair in found[title].items()]
            console.table(["", "a", "b"], rows, title=title, words=["a", "b"])
    layers = [
        [layer["name"], *map(_short, (*layer["norms"], layer["change"], layer["mask_overlap"]))]
        for layer in found["layers"]
        if layer["matrix"]
    ]
    console.table(["", "norm a", "norm b", "change", "zeros in common"], layers, title="weights")
    sparsity = ", ".join(map(_short, found["sparsity"]))
    console.say(
        f"sparsity {sparsity}; zeros in common, of the zeros of either: {_short(found['mask_overlap'])}",
    )


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
