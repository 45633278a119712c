"""A user's training loop with checkpoints: interrupted, resumed, compared, released.

    python examples/checkpointing_demo.py [DIRECTORY]

It trains a small network on scikit-learn's digits (random data without scikit-learn) three times:
uninterrupted, interrupted in the middle of an epoch, and resumed from there. The last must end with the
weights of the first, bit for bit.
"""

import sys
import tempfile
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from peakpoint import CheckpointManager, resume_training
from peakpoint.base.terminal import steady_output

HIDDEN, DROPOUT = 64, 0.2
CONFIG = {"name": "digits_mlp", "hidden": HIDDEN, "dropout": DROPOUT}
EPOCHS = 4
SAVE_EVERY = 10  # steps


def digits() -> tuple[Tensor, Tensor]:
    """Return images (N, 64) and labels (N,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        images = torch.randn(1800, 64, generator=torch.Generator().manual_seed(0))
        return images, images[:, :10].argmax(1)
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def build() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return network, optimizer and scheduler, the same at every start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the accuracy on held-out data."""
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def train(directory: Path, break_at: int | None = None) -> nn.Module:
    """Train to the end, from the newest checkpoint in `directory` if there is one, and return the network.

    `break_at` is a step after which it returns, as if the process had been killed.
    """
    model, optimizer, scheduler = build()
    images, labels = digits()
    # The order of an epoch depends on its number alone, so a resume finds the batch that is next.
    order = torch.Generator()
    data = TensorDataset(images[:1400], labels[:1400])
    loader = DataLoader(data, batch_size=64, shuffle=True, generator=order)

    manager = CheckpointManager(directory, max_training_checkpoints=3)
    start, first, step = 0, 0, 0
    latest = manager.get_latest_checkpoint("training")
    if latest:
        state = resume_training(latest, model, optimizer, scheduler)
        start, first, step = state["next_epoch"], state["next_batch"], state["global_step"]
        print(f"  resuming at epoch {start}, batch {first} from {latest.name}")

    for epoch in range(start, EPOCHS):
        order.manual_seed(epoch)
        model.train()
        for batch, (x, y) in enumerate(islice(loader, first, None), first + 1):
            loss = cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            step += 1
            if step % SAVE_EVERY == 0 or batch == len(loader):
                manager.save_training_checkpoint(
                    model,
                    optimizer,
                    epoch=epoch,
                    step=step,
                    metrics={"loss": loss.item()},
                    scheduler=scheduler,
                    config=CONFIG,
                    batch=batch,
                    epoch_complete=batch == len(loader),
                )
            if step == break_at:
                print(f"  interrupted after step {step}, epoch {epoch}, batch {batch}")
                manager.close()
                return model
        first = 0
        found = accuracy(model, images[1400:], labels[1400:])
        saved = manager.save_milestone_checkpoint(model, found, "accuracy", epoch, config=CONFIG)
        print(f"  epoch {epoch}: accuracy {found:.4f}{' (best so far)' if saved else ''}")

    release(manager)
    manager.close()
    return model


def release(manager: CheckpointManager) -> None:
    """Release the best checkpoint as version 1.0.0, and print the files of each tier."""
    best = manager.get_latest_checkpoint("milestone")
    assert best is not None
    model = build()[0]
    facts = manager.load_checkpoint(best, model)
    manager.save_production_checkpoint(
        model,
        version="1.0.0",
        config=CONFIG,
        metrics=facts["metrics"],
        model_card={"description": "Reads handwritten digits", "limitations": "8x8 images only"},
    )
    for tier, files in manager.list_checkpoints().items():
        print(f"  {tier}: {', '.join(file.name for file in files)}")


def main(directory: Path) -> bool:
    """Return whether the resumed training has the weights of the uninterrupted one."""
    torch.set_num_threads(1)
    print("uninterrupted")
    whole = train(directory / "whole")
    print("interrupted")
    train(directory / "broken", break_at=33)
    print("resumed")
    resumed = train(directory / "broken")
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    equal = all(torch.equal(a, b) for a, b in pairs)
    print(f"equal bit for bit: {'yes' if equal else 'no'}")
    return equal


if __name__ == "__main__":
    with steady_output(), tempfile.TemporaryDirectory() as scratch:
        sys.exit(not main(Path(sys.argv[1] if len(sys.argv) > 1 else scratch)))
