"""What pruning costs: the optimizer's step with and without masks, and the exact selection beside its peers.

    python -m benchmarks.pruning_cost [--repeats 7] [--threads 1] [--device cpu]

The tensors are those of ResNet-50 with 100 classes (54 prunable, 23.7 M weights) with random values. The arms
take turns within each repeat, so that a busy machine slows all of them. The "mask" arms zero 70 % of the
gradients. "exact selection" starts from one score tensor a layer and ends with the masks; the peers start
from one ready vector and end with the threshold alone, ties not resolved, which favours them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks._harness import arguments, ratio, show, summary, timed, turns
from peakpoint.models import create
from peakpoint.optimizers.parameters import param_groups
from peakpoint.optimizers.pruning.lowest_k import select_keys, sort_keys
from peakpoint.optimizers.pruning.masks import zero_unkept
from peakpoint.optimizers.pruning.pruner import Pruner
from peakpoint.optimizers.pruning.settings import PruneSettings


def network(device: str) -> nn.Module:
    """Return ResNet-50 with random gradients."""
    options = {"stem": "imagenet", "dropout": 0.0}
    net = create("resnet50", image_shape=(3, 224, 224), num_classes=100, options=options).to(device)
    for param in net.parameters():
        param.grad = torch.randn_like(param) * 1e-3
    return net


def stepper(device: str, settings: PruneSettings | None) -> Callable[[], Any]:
    """Return a function that takes one fused AdamW step, after the first update where there is pruning."""
    groups = param_groups(network(device), 5e-4)
    optimizer = torch.optim.AdamW(groups, fused=True)
    if settings is not None:
        Pruner(optimizer, settings)
    optimizer.step()
    return optimizer.step


def arms(device: str) -> dict[str, Callable[[], Any]]:
    """Return everything that is timed, by name."""
    values: dict[str, Any] = {
        "criterion": "bitter7",
        "target": 0.7,
        "schedule": "linear",
        "allocation": "global",
    }
    settled = PruneSettings(**values, start_step=0, end_step=1, frequency=1)
    each_step = PruneSettings(**values, start_step=0, end_step=10_000, frequency=1)
    generator = torch.Generator().manual_seed(0)
    shapes = [p.shape for p in param_groups(network("cpu"), 0.0)[0]["params"]]
    scores = [torch.randn(shape, generator=generator).abs().to(device) for shape in shapes]
    vector = torch.cat([score.flatten() for score in scores])
    k = int(0.7 * vector.numel())
    found: dict[str, Callable[[], Any]] = {
        "step, dense": stepper(device, None),
        "step, masked": stepper(device, settled),
        "step, pruning": stepper(device, each_step),
        "exact selection": lambda: select_keys([sort_keys(score) for score in scores], k),
        "torch.kthvalue": lambda: torch.kthvalue(vector, k),
    }
    found |= masking([score.clone() for score in scores])
    if device == "cpu":
        found["np.partition"] = lambda: np.partition(vector.numpy(), k - 1)
    return found


def masking(gradients: list[torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """Return ways to zero the gradients of pruned weights."""
    kept = [torch.rand_like(gradient) > 0.7 for gradient in gradients]
    gone = [mask.logical_not() for mask in kept]
    floats = [mask.float() for mask in kept]
    pairs = list(zip(gradients, kept, strict=True))
    return {
        "mask, ours": lambda: zero_unkept(pairs),
        "mask, float mul": lambda: torch._foreach_mul_(gradients, floats),
        "mask, bool mul": lambda: torch._foreach_mul_(gradients, kept),
        "mask, fill": lambda: [g.masked_fill_(m, 0) for g, m in zip(gradients, gone, strict=True)],
    }


BASES = {"step": "step, dense", "mask": "mask, ours"}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    finish = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    timers = {name: timed(lambda run=run: (run(), finish())) for name, run in arms(options.device).items()}
    turns(timers, 1)
    found = turns(timers, options.repeats)
    rows = {}
    for name, seconds in found.items():
        base = found[BASES.get(name.split(",")[0], "exact selection")]
        rows[name] = [f"{summary([1e3 * each for each in seconds]):.1f}", f"{ratio(seconds, base):.2f}"]
    show(f"n={options.repeats}", ["ms", "ratio"], rows)


if __name__ == "__main__":
    main()
