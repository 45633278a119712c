"""compare: size, accuracy and latency of networks, against the first of them. Imports torch when called."""

import argparse
import string
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakpoint.base.disk_space import in_words
from peakpoint.base.errors import CheckpointError
from peakpoint.base.given import LARGEST_BATCH
from peakpoint.base.terminal import Console
from peakpoint.commands.arguments import Argument, a_path, number, takes
from peakpoint.commands.common import check_there, checkpoint_root, print_json
from peakpoint.deployment.inference.form import SPLITS

if TYPE_CHECKING:
    from peakpoint.deployment.inference.timing import Latency
    from peakpoint.deployment.selection.compare import Network, Row, Size
    from peakpoint.deployment.selection.intervals import Accuracy, Paired

LETTERS = string.ascii_uppercase
TEST = "95 % intervals: Wilson, and Newcombe's for pairs; p: McNemar's exact test, each by itself"
SPARSE = "zeros are multiplied like any number here: sparsity shows in `packed`, not in the time"


@takes(
    Argument("paths", nargs="+", type=a_path, metavar="PATH", help="a release, a checkpoint, a run, or ONNX"),
    Argument("--split", choices=(*SPLITS, "none"), default="val", help="for the accuracy"),
    Argument("--data-root", type=a_path, metavar="DIR", help="where the data lie now"),
    Argument(
        "--batch",
        type=number(int, 1, LARGEST_BATCH),
        default=32,
        metavar="N",
        help="latency of N images, and of 1",
    ),
    Argument("--rounds", type=number(int, 2, 10**6), default=50, metavar="N", help="calls of each network"),
    Argument(
        "--threads", type=number(int, 1, 1024), metavar="N", help="of the CPU; torch's choice when left out"
    ),
    Argument("--device", default="cpu", metavar="NAME", help="such as cuda"),
)
def compare(options: argparse.Namespace) -> int:
    """Print tables of the networks' sizes, accuracy and latency."""
    if not 2 <= len(options.paths) <= len(LETTERS):
        raise CheckpointError(f"Name 2 to {len(LETTERS)} networks: the others are compared with the first.")
    check_there(*options.paths, options.data_root)
    for folder in filter(Path.is_dir, options.paths):
        checkpoint_root(folder)
    import torch

    from peakpoint.deployment.inference import evaluate
    from peakpoint.deployment.selection import compare

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = evaluate.usable(options.device)
    networks = compare.open_all(options.paths, device)
    rows = compare.compare(
        networks,
        None if options.split == "none" else options.split,
        data_root=options.data_root,
        batches=list(dict.fromkeys((1, options.batch))),
        rounds=options.rounds,
        device=device,
    )
    how = {
        "split": options.split,
        "rounds": options.rounds,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "arithmetic": "float32",
    }
    if options.json:
        print_json({**how, "networks": [_plain(row) for row in rows]})
    else:
        _print(rows, how)
    return 0


def _plain(row: "Row") -> dict[str, Any]:
    return {
        "path": row.network.label,
        "file": str(row.network.file),
        "kind": row.network.kind,
        **asdict(row.size),
        "accuracy": row.accuracy and accuracy_facts(row.accuracy),
        "against_first": asdict(row.against) if row.against else None,
        "latency": {str(batch): asdict(each) for batch, each in row.latency.items()},
    }


def _print(rows: "list[Row]", how: dict[str, Any]) -> None:
    console = Console()
    for letter, row in zip(LETTERS, rows, strict=False):
        console.say(f"{letter}  {row.network.label}{_which(row.network)}")
    named = list(zip(LETTERS, rows, strict=False))
    batches = list(rows[0].latency)
    sizes = ["", "file", "weights", "packed", "parameters", "not zero", "sparsity"]
    console.table(sizes, [[letter, *_sizes(row.size)] for letter, row in named], title="size")
    if rows[0].accuracy:
        columns = ["", "right on", "accuracy", "less A's", "p"]
        cells = [[x, *accuracy_cells(row.accuracy, row.against)] for x, row in named if row.accuracy]
        console.table(columns, cells, title="accuracy")
    speed = ["", *(name for n in batches for name in (f"ms for {n}", "by A's"))]
    times = [[letter, *(cell for n in batches for cell in _times(row.latency[n]))] for letter, row in named]
    console.table(speed, times, title="time")
    for note in _notes(rows, how):
        console.say(note)


def _notes(rows: "list[Row]", how: dict[str, Any]) -> list[str]:
    found = []
    if rows[0].accuracy:
        images = f"{rows[0].accuracy.count} {how['split']} images"
        found.append(f"accuracy on {images}, {how['arithmetic']}; {TEST}")
    where = how["device"] if how["device"] != "cpu" else f"CPU, threads: {how['threads']}"
    found.append(f"time: median (quartiles) of {how['rounds']} rounds in random order, {where}")
    if any(row.size.sparsity > 0 for row in rows):
        found.append(SPARSE)
    return found


def _which(network: "Network") -> str:
    """Return the name of the file where the path is a run or a link."""
    return "" if Path(network.label) == network.file else f": {network.file.name}"


def _sizes(size: "Size") -> list[str]:
    return [
        *map(in_words, (size.file_bytes, size.weights_bytes, size.packed_bytes)),
        f"{size.parameters:,}",
        f"{size.nonzero:,}",
        f"{size.sparsity:.4f}",
    ]


def accuracy_facts(accuracy: "Accuracy") -> dict[str, Any]:
    """Return an accuracy as plain values."""
    return {"value": accuracy.value, **asdict(accuracy)}


def accuracy_cells(accuracy: "Accuracy", against: "Paired | None") -> list[str]:
    """Return the number of right answers, the accuracy, its difference from the first and the p of that."""
    found = [f"{accuracy.right:,}", _range(accuracy.value, *accuracy.interval, ".4f")]
    if against is None:
        return [*found, "-", "-"]
    return [*found, _range(against.difference, *against.interval, "+.4f"), f"{against.p:.3g}"]


def _range(value: float, low: float, high: float, form: str) -> str:
    return f"{value:{form}} ({low:{form}} to {high:{form}})"


def _times(latency: "Latency") -> tuple[str, str]:
    ms, ratio = latency.seconds, latency.ratio
    return (
        f"{ms.median * 1e3:.3g} ({ms.low * 1e3:.3g}-{ms.high * 1e3:.3g})",
        f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
    )
