"""Learning rate over a run, as a factor that is a pure function of the run's step, taken or skipped.

Being a function of one integer, a schedule needs no state of its own: a resumed run continues it exactly,
and a run whose length was changed follows the new one. `step` counts from 0, the first step of a run, so
the last is `total - 1`, which gets the final value; past the end the factor stays there.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

Factor = Callable[[int], float]


def learning_rate_schedule(optimizer: "Optimizer", factor: Factor) -> "LambdaLR":
    """A torch scheduler that sets lr to `factor(step)` times the initial lr; call its step() each step."""
    from torch.optim.lr_scheduler import LambdaLR

    return LambdaLR(optimizer, factor)


def skip(schedule: "LambdaLR") -> None:
    """Count a step that the optimizer did not take, without torch's warning when it is the first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule.step()


def warm(step: int, warmup: int) -> float:
    """Linear warm-up over the first `warmup` steps: 1/warmup, 2/warmup, ..., 1."""
    return 1.0 if step >= warmup else (step + 1) / warmup


def constant(total: int, warmup: int) -> Factor:  # noqa: ARG001 - all schedules are called alike
    """The full rate after the warm-up."""
    return lambda step: warm(step, warmup)


def cosine(total: int, warmup: int, final_factor: float) -> Factor:
    """Half a cosine from 1 after the warm-up to `final_factor` at the last step (arXiv:1608.03983)."""

    def factor(step: int) -> float:
        if step < warmup:
            return warm(step, warmup)
        fall = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, total - 1)))
        return final_factor + (1 - final_factor) * fall

    return factor


def multistep(total: int, warmup: int, milestones: Sequence[float], gamma: float) -> Factor:
    """Multiplied by `gamma` at each milestone, a fraction of the run."""
    steps = sorted(round(fraction * total) for fraction in milestones)
    return lambda step: warm(step, warmup) * gamma ** bisect_right(steps, step)


def one_cycle(
    total: int, warmup: int, peak_fraction: float, initial_factor: float, final_factor: float
) -> Factor:
    """Linear from `initial_factor` to 1 at `peak_fraction` of the run, then to `final_factor` (Smith 2018).

    It has its own rise (arXiv:1803.09820); a warm-up, if any, multiplies it.
    """
    peak = round(peak_fraction * (total - 1))

    def factor(step: int) -> float:
        if step < peak:
            rate = initial_factor + (1 - initial_factor) * step / peak
        else:
            rate = 1 + (final_factor - 1) * _progress(step, peak, total - 1)
        return warm(step, warmup) * rate

    return factor


def _progress(step: int, start: int, end: int) -> float:
    """How far `step` is from `start` to `end`, from 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))
