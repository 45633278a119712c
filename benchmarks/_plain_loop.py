"""A training as people write it: DataLoader, torchvision's transforms on PIL images, float32, AdamW."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from benchmarks._harness import ROOT
from benchmarks._loop_arms import compose
from peakpoint.models._torchvision import torchvision
from peakpoint.trainer.build import build_model

CLASSES = 100


def write_images(root: Path, count: int) -> None:
    """Write `count` random images of CIFAR's shape for training, and a few for testing."""
    draw = np.random.default_rng(0)
    for split, number in (("train", count), ("test", 200)):
        images = draw.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
        np.savez(root / f"{split}.npz", images=images, labels=np.arange(number) % CLASSES)


def images_per_second(root: Path, model: str, batch_size: int, steps: int, workers: int) -> float:
    """Return the rate over `steps` steps after two to warm up, in a process of its own."""
    asked = [str(root), model, str(batch_size), str(steps), str(workers)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks._plain_loop", *asked],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


class PilImages(Dataset):  # type: ignore[type-arg]
    """train.npz, one image at a time through torchvision's transforms, as torchvision's own CIFAR dataset."""

    def __init__(self, root: Path) -> None:
        torchvision()
        from torchvision import transforms

        with np.load(root / "train.npz", allow_pickle=False) as archive:
            self.images, self.labels = archive["images"], archive["labels"]
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        steps += [transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def train(root: Path, model: str, batch_size: int, steps: int, workers: int) -> float:
    """Train, and return the images a second."""
    config, _ = compose(1000, f"model={model}")
    network = build_model(config.model, (3, 32, 32), CLASSES)
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    loader = DataLoader(PilImages(root), batch_size, shuffle=True, drop_last=True, num_workers=workers)
    since, done = time.perf_counter(), 0
    while True:
        for images, labels in loader:
            optimizer.zero_grad()
            cross_entropy(network(images), labels).backward()
            optimizer.step()
            done += 1
            if done == 2:
                since = time.perf_counter()
            if done == steps + 2:
                return steps * batch_size / (time.perf_counter() - since)


if __name__ == "__main__":
    folder, name, *numbers = sys.argv[1:]
    print(train(Path(folder), name, *map(int, numbers)))
