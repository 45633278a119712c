"""Averages against plain NumPy."""

import numpy as np
import torch
from torch import nn

from peakpoint.deployment.inference import averaging


def test_the_mean_of_probabilities_is_that_of_numpy():
    logits = torch.randn(3, 20, 5, generator=torch.Generator().manual_seed(1)) * 4
    raised = np.exp(logits.numpy().astype(np.float64))
    expected = (raised / raised.sum(axis=2, keepdims=True)).mean(axis=0)
    found = averaging.mean_of_probabilities(list(logits))
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(found.softmax(dim=1).numpy(), expected, rtol=1e-5)


def test_the_mean_of_weights_is_that_of_numpy_where_the_mask_keeps_them():
    generator = torch.Generator().manual_seed(2)
    states = [
        {"w": torch.randn(4, 3, generator=generator), "b": torch.randn(4, generator=generator),
         "count": torch.tensor(n)}
        for n in (7, 8, 10)
    ]  # fmt: skip
    mask = torch.arange(12).view(4, 3) % 2 == 0
    found = averaging.mean_weights(states, {"w": mask})
    mean = {name: np.mean([state[name].numpy() for state in states], axis=0) for name in ("w", "b")}
    np.testing.assert_allclose(found["w"].numpy(), mean["w"] * mask.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found["b"].numpy(), mean["b"], rtol=1e-6)
    assert found["w"].dtype == torch.float32
    assert found["count"] == 7


def test_recalibrated_statistics_are_those_of_a_pass():
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    batches = [(torch.randn(8, 3, 6, 6), torch.zeros(8)) for _ in range(5)]
    network(batches[0][0])  # shapes, and statistics that must not stay
    random = torch.get_rng_state()
    averaging.recalibrate(network, batches, torch.no_grad())
    with torch.no_grad():
        seen = [network[0](images).transpose(0, 1).flatten(1).numpy() for images, _ in batches]
    np.testing.assert_allclose(
        network[1].running_mean.numpy(), np.mean([one.mean(axis=1) for one in seen], axis=0), rtol=1e-4
    )
    np.testing.assert_allclose(
        network[1].running_var.numpy(), np.mean([one.var(axis=1, ddof=1) for one in seen], axis=0), rtol=1e-4
    )
    assert (network.training, network[1].momentum) == (False, 0.1)
    assert torch.equal(torch.get_rng_state(), random)
