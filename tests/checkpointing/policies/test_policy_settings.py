"""Settings: ranges, the registry, and the values in conf/."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from peakpoint.base import registry
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.policies.best import Best, Metric
from peakpoint.checkpointing.policy import Policy
from tests.checkpointing.policies import policy_cases as case

CONF = Path(__file__).parents[3] / "conf" / "checkpoint" / "policy"


@pytest.mark.parametrize(
    ("make", "option", "must"),
    [
        (lambda: case.interval(epochs=0), "interval.epochs=0", "at least 1"),
        (lambda: case.interval(steps=-5), "interval.steps=-5", "at least 1"),
        (lambda: case.interval(keep_last=0), "interval.keep_last=0", "at least 1"),
        (lambda: case.interval(epochs=1, keep_every=0), "interval.keep_every=0", "at least 1"),
        (
            lambda: case.interval(keep_every=2),
            "interval.keep_every=2",
            "null where epochs and steps are",
        ),
        (lambda: case.wall_clock(minutes=0), "wall_clock.minutes=0", "above 0"),
        (lambda: case.wall_clock(minutes=case.NAN), "wall_clock.minutes=nan", "above 0"),
        (lambda: case.wall_clock(keep_last=0), "wall_clock.keep_last=0", "at least 1"),
        (lambda: case.best(keep=0), "best.keep=0", "at least 1"),
        (lambda: case.best(accuracy="up"), "best.metrics.accuracy.mode=up", "max or min"),
        (lambda: case.best(min_delta=-0.1), "best.metrics.accuracy.min_delta=-0.1", "at least 0 and finite"),
        (
            lambda: case.best(min_delta=case.NAN),
            "best.metrics.accuracy.min_delta=nan",
            "at least 0 and finite",
        ),
        (lambda: Best(metrics={}, keep=1), "best.metrics={}", "one metric or more"),
        (
            lambda: case.best(**{"a/b": "max", "a_b": "max"}),
            "best.metrics=['a/b', 'a_b']",
            "names of different files",
        ),
        (lambda: case.top_k(k=0), "top_k.k=0", "at least 1"),
        (lambda: case.top_k(mode=""), "top_k.mode=", "max or min"),
        (lambda: case.sparsity(1.0), "sparsity.targets=[1.0]", "fractions below 1"),
        (lambda: case.sparsity(case.NAN), "sparsity.targets=[nan]", "fractions below 1"),
        (lambda: case.sparsity(0.5, rule="near"), "sparsity.rule=near", "at_least or window"),
        (lambda: case.sparsity(0.5, tolerance=-1), "sparsity.tolerance=-1", "at least 0 and below 1"),
        (lambda: case.sparsity(0.5, settled=-1), "sparsity.settled=-1", "at least 0"),
        (lambda: case.sparsity(0.5, keep=0), "sparsity.keep=0", "at least 1"),
        (lambda: case.sparsity(0.5, mode="x"), "sparsity.mode=x", "max or min"),
        (lambda: case.sparsity(0.5, min_delta=case.INF), "sparsity.min_delta=inf", "at least 0 and finite"),
        (lambda: case.early_stopping(patience=0), "early_stopping.patience=0", "at least 1"),
        (lambda: case.early_stopping(mode="x"), "early_stopping.mode=x", "max or min"),
        (lambda: case.early_stopping(from_epoch=-1), "early_stopping.from_epoch=-1", "at least 0"),
        (lambda: case.early_stopping(stop_at=case.NAN), "early_stopping.stop_at=nan", "finite"),
        (lambda: case.early_stopping(diverged_at=-case.INF), "early_stopping.diverged_at=-inf", "finite"),
        (
            lambda: case.early_stopping(mode="min", stop_at=0.5, diverged_at=0.5),
            "early_stopping.stop_at=0.5",
            "better than diverged_at=0.5 with mode=min",
        ),
        (lambda: case.early_stopping(min_delta=-1), "early_stopping.min_delta=-1", "at least 0 and finite"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_the_option(make, option, must):
    with pytest.raises(CheckpointError) as error:
        make()
    assert str(error.value) == f"checkpoint.policy.{option} is out of range: it must be {must}."


def test_every_policy_has_a_file_and_the_file_has_every_value():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(registry.table("policy"))
    shared = {
        "checkpoint": {
            "interval": 10,
            "interval_steps": None,
            "interval_minutes": 60,
            "keep_last": 3,
            "monitor": {"metric": "f1_score", "mode": "max"},
        },
        "pruning": {"target": 0.0},
    }
    for name, settings_class in registry.table("policy").items():
        node = OmegaConf.load(CONF / f"{name}.yaml")
        assert list(node.defaults) == [f"/schema/policy/{name}@{name}", "_self_"]
        assert set(node[name]) == {f.name for f in dataclasses.fields(settings_class)}
        root = OmegaConf.create(shared)
        root.policy = OmegaConf.merge(OmegaConf.structured(settings_class), node[name])
        settings = OmegaConf.to_object(root.policy)
        assert type(settings) is settings_class
        assert settings.build() == settings


def test_settings_hold_no_values():
    """None alone, for off, where records of earlier versions lack the setting."""
    for settings_class in (*registry.table("policy").values(), Metric):
        for field in dataclasses.fields(settings_class):
            assert field.default in (dataclasses.MISSING, None)
            assert field.default_factory is dataclasses.MISSING


def test_a_policy_of_one_method_is_its_own_settings():
    @dataclasses.dataclass(kw_only=True)
    class Never(Policy):
        number: int

        def __post_init__(self):
            self.seen = []

        def decide(self, event):
            return []

    settings = Never(number=1)
    policy = settings.build()
    assert (type(policy), policy.number) == (Never, 1)
    assert policy.seen is not settings.seen
    assert (policy.tags, policy.watched, policy.keeps([]), policy.reconcile([])) == ((), (), {}, [])
    assert policy.state_dict() == {}
