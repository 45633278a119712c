"""A loop of one's own for the tests of the library API: network, optimizer, schedule, data."""

import copy
import random
from itertools import islice

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from peakpoint import load_checkpoint

CONFIG = {"d_model": 16, "n_heads": 2}


class BayesianTransformer(nn.Module):
    """A small classifier with dropout and batch statistics, under the guide's name."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.body(x))


class Training:
    """The caller's own side: model, optimizer, schedule, data, and a loop that can be cut anywhere."""

    def __init__(self, seed: int = 0):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self.model = BayesianTransformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.7)
        x = torch.randn(40, 8, generator=torch.Generator().manual_seed(5))
        self.order = torch.Generator()
        data = TensorDataset(x, x[:, :3].argmax(1))
        self.loader = DataLoader(data, 8, shuffle=True, generator=self.order)
        self.val = (x, x[:, :3].argmax(1))
        self.step = 0

    def batches(self, epoch: int, first: int = 0):
        self.order.manual_seed(epoch)
        return islice(enumerate(self.loader), first, None)

    def take(self, batch) -> dict[str, float]:
        x, y = batch
        noise = random.random() + np.random.rand()  # the other two generators take part
        self.model.train()
        loss = cross_entropy(self.model(x + 0.01 * noise), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1
        return {"loss": loss.item(), "accuracy": 0.5}

    def epoch(self, epoch: int, first: int = 0, stop: int | None = None):
        for index, batch in self.batches(epoch, first):
            if index == stop:
                break
            self.take(batch)

    def state(self) -> dict:
        return copy.deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
            }
        )


def validate(model, val) -> float:
    model.eval()
    with torch.no_grad():
        return (model(val[0]).argmax(1) == val[1]).float().mean().item()


def load_model(path) -> nn.Module:
    """The caller's own helper."""
    model = BayesianTransformer()
    load_checkpoint(path, model)
    return model


def save(manager, t, *, epoch=0, step=0, **more):
    return manager.save_training_checkpoint(
        t.model, t.optimizer, epoch=epoch, step=step, metrics={"loss": 0.5}, **more
    )
