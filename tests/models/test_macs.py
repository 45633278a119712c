"""The multiply-accumulates of a network, by weight."""

import torch
from torch import nn

from peakpoint.models.macs import macs


def test_macs_are_those_of_each_weight_and_the_rest_is_of_none():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(4)
            self.body = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.Flatten(), nn.Linear(72, 5))

        def forward(self, images):
            features = self.norm(self.conv(images))
            return self.body(features) @ torch.ones(5, 2, device=images.device)

    assert macs(Net, (3, 8, 8)) == {
        "conv.weight": 4 * 3 * 9 * 64,
        "body.0.weight": 8 * 2 * 9 * 9,
        "body.2.weight": 72 * 5,
        "": 10,
    }


def test_a_network_is_counted_without_its_values():
    before = torch.get_rng_state()
    macs(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 1 << 36)), (3, 2, 2))  # 3 TiB
    assert torch.equal(torch.get_rng_state(), before)
