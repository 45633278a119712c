"""The configuration in conf/ and the dataclasses agree, and what is wrong is refused in one sentence."""

from dataclasses import fields, is_dataclass

import pytest
from omegaconf import OmegaConf

from peakpoint.base import registry
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing.metrics import METRICS
from peakpoint.trainer.config import schema as c
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.choices import CHOICES, all_choices, groups
from tests.conftest import ROOT, one_line
from tests.trainer.parts import compose

CONF = ROOT / "conf"
GROUPS = ("model", "data", "optimizer", "scheduler", "pruning", "checkpoint", "experiment")
OPTIONS = sorted(f"{p.parent.name}={p.stem}" for group in GROUPS for p in (CONF / group).glob("*.yaml"))
POLICIES = sorted(p.stem for p in (CONF / "checkpoint" / "policy").glob("*.yaml"))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_composes_and_is_valid(option):
    config = checked(compose(option))
    assert isinstance(config, c.Config)
    for name in ("model", "data", "optimizer", "scheduler", "pruning", "checkpoint"):
        assert is_dataclass(getattr(config, name))


@pytest.mark.parametrize("policies", [*([p] for p in POLICIES), POLICIES, []], ids=str)
def test_policies_alone_together_and_none(policies):
    config = checked(compose(f"checkpoint/policy=[{','.join(policies)}]"))
    assert sorted(config.checkpoint.policy) == sorted(policies)
    assert all(is_dataclass(settings) for settings in config.checkpoint.policy.values())


def test_no_dataclass_has_a_value_of_its_own():
    """The values are in conf/, and nowhere else; None stands for what records of earlier versions lack."""
    schemas = [s for kind in CHOICES for s in registry.table(kind).values()]
    # Other tests register plugins, whose classes do have values.
    ours = [s for s in schemas if s.__module__.startswith("peakpoint.")]
    assert len(ours) > 20
    classes = [c.Config, c.Pruning, c.Checkpoint, c.Mirror, c.Monitor, *ours]
    for each in classes:
        for field in fields(each):
            missing = field.default is field.default_factory
            none = field.default is None or "MISSING" in repr(field.default)
            assert missing or none, f"{each.__name__}.{field.name}"


def test_every_file_in_conf_is_typed():
    """A typing error in one of them is found while it is composed."""
    # release has a loader of its own, sweep is the sweeper's; schema is merged into typed nodes.
    others = {"hydra", "experiment", "release", "schema", "sweep"}
    files = [p for p in CONF.rglob("*.yaml") if not others & set(p.relative_to(CONF).parts)]
    assert len(files) > 25
    for path in files:
        assert "schema/" in path.read_text(), path


@pytest.mark.parametrize("base", sorted((CONF / "schema").rglob("*.yaml")), ids=lambda p: p.stem)
def test_what_choices_share_is_used_and_is_no_choice(base):
    used = f"/{base.relative_to(CONF).with_suffix('')}@_here_"
    assert sum(used in path.read_text() for path in CONF.rglob("*.yaml")) > 1
    assert not [group for group in groups() if group.startswith("schema")]
    assert "schema" not in all_choices()


def test_past_the_check_nothing_is_of_omegaconf():
    def plain(value):
        assert not OmegaConf.is_config(value)
        if is_dataclass(value):
            for field in fields(value):
                plain(getattr(value, field.name))
        elif isinstance(value, dict | list):
            for child in value.values() if isinstance(value, dict) else value:
                plain(child)

    plain(checked(compose()))


UNKNOWN = [
    ("+epoch=3", "epoch is not a key of this configuration: did you mean epochs?"),
    ("+data.rooot=x", "data.rooot is not a key of this configuration: did you mean data.root?"),
    (
        "+optimizer.betas=[1]",
        "optimizer.betas is not a key of this configuration: did you mean optimizer.beta1?",
    ),
    ("+scheduler.zzz=1", "scheduler.zzz is not a key of this configuration; there are: final_factor, name,"),
    (
        "+checkpoint.keep=1",
        "checkpoint.keep is not a key of this configuration: did you mean checkpoint.keep_last?",
    ),
    ("+checkpoint.policy.best.keeep=1", "did you mean checkpoint.policy.best.keep?"),
    (
        "+checkpoint.policy.best.metrics.loss.min=1",
        "did you mean checkpoint.policy.best.metrics.loss.min_delta?",
    ),
    ("++a.b.c=1", "a is not a key of this configuration"),
]


@pytest.mark.parametrize(("override", "sentence"), UNKNOWN, ids=[o for o, _ in UNKNOWN])
def test_a_key_that_plus_adds_is_refused_at_any_depth(override, sentence):
    with pytest.raises(UserError) as refusal:
        checked(compose(override))
    assert sentence in str(refusal.value)
    assert str(refusal.value)[-2:] != "?."


INVALID = [
    ("epochs=0", "epochs=0 is out of range: it must be at least 1."),
    ("seed=-1", "seed=-1 is out of range"),
    (f"epochs={2**64}", "epochs cannot be saved as JSON: it has a number of more than 64 bits"),
    ("optimizer.lr=-1", "optimizer.lr=-1.0 is out of range: it must be at least 0."),
    ("optimizer.lr=nan", "optimizer.lr=nan is out of range"),
    ("optimizer.beta1=1.0", "optimizer.beta1=1.0 is out of range"),
    ("optimizer.clip_norm=0", "optimizer.clip_norm=0.0 is out of range"),
    ("model.dropout=1", "model.dropout=1.0 is out of range"),
    ("data.val_fraction=0", "data.val_fraction=0.0 is out of range"),
    ("scheduler.warmup_epochs=-1", "scheduler.warmup_epochs=-1.0 is out of range"),
    ("pruning.target=1", "pruning.target=1.0 is out of range"),
    ("pruning.frequency=0", "pruning.frequency=0 is out of range"),
    ("checkpoint.keep_last=0", "checkpoint.keep_last=0 is out of range"),
    ("checkpoint.interval=0", "checkpoint.interval=0 is out of range: it must be at least 1"),
    ("checkpoint.policy.sparsity.targets=[1.0]", "sparsity.targets=[1.0] is out of range"),
    ("checkpoint.policy.best.metrics.loss.mode=max", "loss is better the lower it is: set its mode to min."),
    (
        "checkpoint.policy.sparsity.metric=los",
        "checkpoint.policy.sparsity: los is not measured: did you mean loss?",
    ),
    ("model.name=???", "model.name has no value: set model.name=VALUE."),
    ("data.root=${oc.env:PEAKPOINT_NO_SUCH_THING}", "data.root: "),
]


@pytest.mark.parametrize(("override", "sentence"), INVALID, ids=[o for o, _ in INVALID])
def test_a_value_out_of_range_is_one_sentence(override, sentence):
    with one_line((UserError, CheckpointError)) as refusal:
        checked(compose(override))
    assert sentence in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["scheduler=multistep", "scheduler.milestones=[0.7,0.5]"], "must be rising fractions of the run"),
        (["scheduler=one_cycle", "scheduler.peak_fraction=2"], "scheduler.peak_fraction=2.0 is out of range"),
        (
            ["optimizer=sgd", "optimizer.momentum=0"],
            "optimizer.nesterov=true needs optimizer.momentum above 0",
        ),
        (["optimizer=adamwspam", "optimizer.spike_threshold=0.5"], "spike_threshold=0.5 is out of range"),
        (
            ["pruning.end_step=3", "pruning.end_epoch=1"],
            "pruning.end_step and pruning.end_epoch are both given",
        ),
        (["batch_size=10", "grad_accumulation=4"], "batch_size=10 must be a multiple of grad_accumulation=4"),
        (["data=synthetic", "data.num_classes=1"], "data.num_classes=1 is out of range"),
        (["epochs=3", "scheduler.warmup_epochs=3.5"], "warmup_epochs=3.5 is more than epochs=3"),
        (["epochs=3", "pruning.end_epoch=4"], "pruning.end_epoch=4.0 is after epochs=3: pruning.target=0.7"),
        (["pruning.start_epoch=2", "pruning.end_epoch=1"], "start_epoch=2.0 is after pruning.end_epoch=1.0"),
        (["pruning.start_step=2", "pruning.end_step=1"], "start_step=2 is after pruning.end_step=1: let it"),
        (["pruning.start_fraction=0.9"], "pruning.start_fraction=0.9 is after pruning.end_fraction=0.8"),
        (["pruning.criterion=bitter1"], "is not a choice. It is magnitude: use pruning.criterion=magnitude."),
        (["pruning.pattern=4:2"], "pruning.pattern=4:2 is no pattern: give N:M, as 2:4"),
        (["pruning.min_density=1"], "pruning.min_density=1.0 is out of range"),
        (["optimizer=sgd", "pruning=state"], "pruning.criterion=bitter7 scores weights by exp_avg_sq, which"),
        (["pruning=none", "optimizer=adamw", "pruning.target=0.5"], "pruning=none trains dense"),
        (["pruning=regrow", "optimizer=adamw", "pruning.target=0.5"], "pruning=regrow trains dense"),
    ],
)
def test_rules_across_fields(overrides, sentence):
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        checked(compose(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        ["epochs=3", "scheduler.warmup_epochs=3"],
        ["epochs=3", "pruning.end_epoch=3"],
        ["pruning.start_epoch=1", "pruning.end_epoch=1"],
        ["pruning.start_step=2", "pruning.end_step=2"],
        ["pruning.start_fraction=0.8"],
        ["batch_size=4", "grad_accumulation=4"],
    ],
    ids=" ".join,
)
def test_the_bounds_of_the_rules_are_allowed(overrides):
    checked(compose(*overrides))


@pytest.mark.parametrize(
    ("overrides", "target"),
    [
        (["pruning.pattern=2:4"], 0.5),
        (["pruning.pattern=1:4", "optimizer=sgd"], 0.75),
        (["pruning.pattern=2:4", "pruning=none", "optimizer=sgd"], 0.0),
        (["pruning.pattern=2:4", "pruning.target=0.3"], 0.3),
    ],
)
def test_a_pattern_sets_the_target_where_none_is_typed(overrides, target):
    cfg = compose(*overrides)
    assert checked(cfg, [o.partition("=")[0] for o in overrides]).pruning.target == target
    assert cfg.pruning.target == target  # for all that refers to it


NAMES = [
    ("pruning.schedule=cubicc", "pruning.schedule=cubicc is not a choice: did you mean cubic?"),
    ("pruning.allocation=", "pruning.allocation= is not a choice; there are: erk, global, uniform."),
    (
        "pruning.criterion=",
        "pruning.criterion= is not a choice; there are: bitter0, bitter3, bitter7, magnitude, movement, "
        "power, random, taylor.",
    ),
    ("pruning.criterion=biter7", "pruning.criterion=biter7 is not a choice: did you mean bitter7?"),
    ("optimizer.name=adamm", "optimizer.name=adamm is not a choice: did you mean adam?"),
    ("optimizer.name=adamw", "optimizer.name=adamw cannot be set: choose optimizer=adamw instead."),
    ("model.name=resnet51", "model.name=resnet51 is not a choice: did you mean resnet50?"),
    ("model.name=lenet5", "model.name=lenet5 cannot be set: choose model=lenet5 instead."),
    ("data.name=cifar1000", "data.name=cifar1000 is not a choice: did you mean cifar100?"),
    ("data.name=synthetic", "data.name=synthetic cannot be set: choose data=synthetic instead."),
    ("scheduler.name=cosin", "scheduler.name=cosin is not a choice: did you mean cosine?"),
    ("scheduler.name=constant", "scheduler.name=constant cannot be set: choose scheduler=constant instead."),
    (
        "checkpoint.mirror.what=[milestones]",
        "checkpoint.mirror.what: milestones is no tier, role or policy of this run: did you mean milestone?",
    ),
]


@pytest.mark.parametrize("pruning", [[], ["pruning.target=0"]], ids=str)
@pytest.mark.parametrize(("override", "sentence"), NAMES, ids=[o for o, _ in NAMES])
def test_a_wrong_name_is_refused_with_the_nearest_whether_it_is_used_or_not(override, sentence, pruning):
    with pytest.raises(UserError) as refusal:
        checked(compose(*pruning, override))
    # A name that no component has may be that of a component of the user's own.
    assert str(refusal.value) in (sentence, f"{sentence} A component of your own needs plugins=[MODULE].")
    assert ("plugins=" in str(refusal.value)) == ("is not a choice" in sentence)


@pytest.mark.parametrize("metric", METRICS)
def test_every_measured_metric_can_be_monitored(metric):
    mode = METRICS[metric].better
    config = checked(compose(f"checkpoint.monitor.metric={metric}", f"checkpoint.monitor.mode={mode}"))
    assert (config.checkpoint.policy["sparsity"].metric, config.checkpoint.monitor.mode) == (metric, mode)
    wrong = "min" if mode == "max" else "max"
    with pytest.raises(UserError, match=f"set its mode to {mode}"):
        checked(compose(f"checkpoint.monitor.metric={metric}", f"checkpoint.monitor.mode={wrong}"))


def test_the_sentence_that_always_works():
    config = checked(compose("optimizer=adamwprune", "checkpoint.interval=10"))
    assert config.checkpoint.policy["interval"].epochs == 10
    assert (config.pruning.criterion, config.pruning.target) == ("bitter7", 0.7)


def test_one_more_metric_as_the_file_says():
    extra = "++checkpoint.policy.best.metrics={f1_score:{mode:max,min_delta:0.0}}"
    assert extra in (CONF / "checkpoint" / "policy" / "best.yaml").read_text()
    assert sorted(checked(compose(extra)).checkpoint.policy["best"].metrics) == [
        "accuracy",
        "f1_score",
        "loss",
    ]
    less = checked(compose("~checkpoint.policy.best.metrics.loss"))
    assert sorted(less.checkpoint.policy["best"].metrics) == ["accuracy"]


def test_a_template_for_names_is_checked_before_anything_loads():
    with pytest.raises(
        CheckpointError, match=r"checkpoint.name=\{modle\} is not a template: \{modle\} is not a"
    ):
        checked(compose("checkpoint.name='{modle}'"))
    assert (
        checked(compose("checkpoint.name='{model}_{accuracy:.2f}'")).checkpoint.name
        == "{model}_{accuracy:.2f}"
    )
