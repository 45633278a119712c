import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from peakpoint.base import registry
from peakpoint.optimizers import catalogue  # noqa: F401 (registers)
from tests.optimizers.optimizer_cases import through_a_file


def factor_of(name, total, warmup, **options):
    return registry.make("scheduler", name, {"warmup_epochs": 0.0, **options}).build(total, warmup)


def cosine(total, warmup, final_factor):
    return factor_of("cosine", total, warmup, final_factor=final_factor)


def one_cycle(total, warmup, initial_factor=0.04, peak_fraction=0.3):
    options = {"peak_fraction": peak_fraction, "initial_factor": initial_factor, "final_factor": 0.0}
    return factor_of("one_cycle", total, warmup, **options)


FACTORS = {
    "cosine": cosine(100, 10, 0.01),
    "multistep": factor_of("multistep", 100, 10, milestones=[0.5, 0.75], gamma=0.1),
    "one_cycle": one_cycle(100, 0),
    "constant": factor_of("constant", 100, 10),
}
FINAL = {"cosine": 0.01, "multistep": 0.01, "one_cycle": 0.0, "constant": 1.0}


@pytest.mark.parametrize("name", FACTORS)
def test_last_step_has_the_final_value_and_it_stays(name):
    factor = FACTORS[name]
    assert [factor(t) for t in (99, 100, 10_000)] == pytest.approx([FINAL[name]] * 3)
    assert all(0 <= factor(t) <= 1 for t in range(300))


@pytest.mark.parametrize("name", ["cosine", "multistep", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(name):
    assert [FACTORS[name](t) for t in range(11)] == pytest.approx([*(i / 10 for i in range(1, 11)), 1.0])


def test_cosine_half_way():
    assert cosine(101, 0, 0.0)(50) == pytest.approx(0.5)


def test_multistep_drops_at_the_milestones():
    assert [FACTORS["multistep"](t) for t in (49, 50, 74, 75)] == pytest.approx([1.0, 0.1, 0.1, 0.01])


def test_one_cycle_rises_and_falls():
    factor = FACTORS["one_cycle"]
    assert factor(0) == pytest.approx(0.04)
    assert max(range(100), key=factor) == 30
    assert factor(30) == 1.0


def test_a_warm_up_multiplies_the_rise_of_one_cycle():
    plain, warmed = (one_cycle(100, warmup) for warmup in (0, 10))
    assert [warmed(t) for t in range(100)] == pytest.approx(
        [plain(t) * min(1, (t + 1) / 10) for t in range(100)]
    )


@pytest.mark.parametrize(
    "build", [cosine(1, 0, 0.0), cosine(3, 50, 0.0), one_cycle(1, 0, initial_factor=0.1, peak_fraction=0.0)]
)
def test_runs_too_short_for_their_schedule(build):
    assert all(0 <= build(t) <= 1 for t in range(5))
    assert build(0) > 0


def learner():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)


@pytest.mark.parametrize("name", FACTORS)
def test_the_rate_is_set_each_step_and_resumes_exactly(name):
    optimizer = learner()
    schedule = LambdaLR(optimizer, FACTORS[name])
    rates = []
    for step in range(120):
        if step == 37:
            state = through_a_file({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()})
            optimizer = learner()
            schedule = LambdaLR(optimizer, FACTORS[name])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [0.5 * FACTORS[name](step) for step in range(120)]
