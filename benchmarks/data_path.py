"""Training images a second: this project's data path against torchvision's transforms in a DataLoader.

Both make the same batches, random crop with padding 4, horizontal flip and normalisation of 32x32 images.
The contenders take turns, so that a change of the machine's speed meets all of them.

    python -m benchmarks.data_path                  # random images
    python -m benchmarks.data_path --root DIR       # the images of DIR/train.npz
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._machine import machine
from benchmarks._plain_loop import PilImages, write_images
from peakpoint.trainer.data.pipeline import build_data
from peakpoint.trainer.data.sources import Npz

BATCH, PADDING = 128, 4


def rate(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Images a second over a whole epoch, the start of workers included."""
    start, count = time.perf_counter(), 0
    for images, _ in batches:
        count += len(images)
    return count / (time.perf_counter() - start)


def measure(root: Path, repeats: int) -> dict[str, list[float]]:
    """Rates of every contender, in images a second, one for each repeat."""
    cfg = Npz(
        name="npz",
        root=str(root),
        val_fraction=1e-9,
        image_size=None,
        crop_padding=PADDING,
        flip=True,
        cutout=0,
    )
    data = build_data(
        cfg, seed=0, batch_size=BATCH, eval_batch_size=BATCH, device=torch.device("cpu"), channels_last=True
    )
    peer = PilImages(root)
    contenders: dict[str, Callable[[int], Iterable[tuple[Tensor, Tensor]]]] = {
        "peakpoint": data.train_batches,
        "DataLoader, 0 workers": lambda _: DataLoader(peer, BATCH, shuffle=True, drop_last=True),
        "DataLoader, 2 workers": lambda _: DataLoader(
            peer, BATCH, shuffle=True, drop_last=True, num_workers=2
        ),
    }
    rate(data.train_batches(0))  # the first epoch also warms the memory allocator
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats):
        for name, batches in contenders.items():
            rates[name].append(rate(batches(repeat)))
    return rates


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(description="Images a second, against torchvision's transforms.")
    parser.add_argument("--root", type=Path, help="folder with train.npz; random images when left out")
    parser.add_argument("--images", type=int, default=50_000, help="how many random images")
    parser.add_argument("--repeats", type=int, default=5, help="epochs of each contender")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch in each process")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            write_images(Path(folder), options.images)
        rates = measure(options.root or Path(folder), options.repeats)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    if options.json:
        figures = {"machine": machine(), "batch": BATCH, "images_per_second": rates, "median": medians}
        print(json.dumps(figures))
        return
    print(machine())
    title = f"batch {BATCH}, n={options.repeats}"
    print(f"{title:<24}{'images/s':>10}{'min':>10}{'max':>10}{'ours is':>9}")
    for name, values in rates.items():
        ratio = medians["peakpoint"] / medians[name]
        print(f"{name:<24}{medians[name]:>10,.0f}{min(values):>10,.0f}{max(values):>10,.0f}{ratio:>8.1f}x")


if __name__ == "__main__":
    main()
