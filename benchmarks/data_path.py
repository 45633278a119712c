"""Training images a second: this project's data path against torchvision's transforms in a DataLoader.

    python -m benchmarks.data_path                  # random images
    python -m benchmarks.data_path --root DIR       # the images of DIR/train.npz

Both make the same batches: random crop with padding 4, horizontal flip and normalisation of 32x32 images.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._harness import arguments, ratio, show, summary, turns
from benchmarks._plain_loop import PilImages, write_images
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.data.sources import Npz

BATCH, PADDING = 128, 4
OURS = "peakpoint"


def rate(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return images a second over a whole epoch, the start of workers included."""
    start, images = time.perf_counter(), 0
    for batch, _ in batches:
        images += len(batch)
    return images / (time.perf_counter() - start)


def arms(root: Path) -> dict[str, Callable[[], float]]:
    """Return an epoch of every contender; ours has had one, which warms the memory allocator."""
    cfg = Npz(
        name="npz",
        root=str(root),
        val_fraction=1e-9,
        image_size=None,
        crop_padding=PADDING,
        flip=True,
        cutout=0,
    )
    data = DataModule(
        cfg, seed=0, batch_size=BATCH, eval_batch_size=BATCH, device=torch.device("cpu"), channels_last=True
    )
    peer, epochs = PilImages(root), count()
    rate(data.train_batches(next(epochs)))

    def loader(workers: int) -> Callable[[], float]:
        return lambda: rate(DataLoader(peer, BATCH, shuffle=True, drop_last=True, num_workers=workers))

    return {
        OURS: lambda: rate(data.train_batches(next(epochs))),
        "DataLoader, 0 workers": loader(0),
        "DataLoader, 2 workers": loader(2),
    }


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("--root", type=Path, help="folder with train.npz; random images when left out")
    parser.add_argument("--images", type=int, default=50_000, help="how many random images")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.root is None:
            write_images(Path(folder), options.images)
        found = turns(arms(options.root or Path(folder)), options.repeats)
    rows = {
        name: [f"{summary(rates):.0f}", f"{ratio(found[OURS], rates):.1f}"] for name, rates in found.items()
    }
    show(f"batch {BATCH}, n={options.repeats}", ["images/s", "ours is, times"], rows)


if __name__ == "__main__":
    main()
