"""Modules of one's own: named on the command line, imported before anything is composed."""

import pkgutil
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from omegaconf import OmegaConf

from peakpoint.base import registry
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.base.registry import register
from peakpoint.checkpointing.policy import Policy
from peakpoint.models import Model
from peakpoint.optimizers.pruning.criterion import Criterion
from peakpoint.optimizers.scope import EVERYTHING
from peakpoint.optimizers.settings import Optimizer, Scheduler
from peakpoint.trainer.build import build_model, build_optimizer, build_schedule
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.choices import choices, register_schemas
from tests.conftest import TINY, one_line, status
from tests.trainer.parts import compose, parts


@pytest.mark.parametrize(
    ("argv", "modules"),
    [
        ([], []),
        (["epochs=3"], []),
        (["plugins=[a]"], ["a"]),
        (["plugins=[a, b.c]"], ["a", "b.c"]),
        (["plugins=['a',\"b\"]"], ["a", "b"]),
        (["plugins=[]"], []),
        (["plugins=[a]", "x=1", "plugins=[b]"], ["b"]),
        (["my.plugins=[a]"], []),
    ],
)
def test_the_modules_that_a_command_line_names(argv, modules):
    assert registry.named(argv) == modules


def test_a_module_that_cannot_be_imported_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_module_at_all")
    for module in ("no_such_module_at_all", "needs_more", "json.no_such_module"):
        with one_line(CheckpointError, match=f"plugins: {module} cannot be imported: "):
            registry.load([module])


@pytest.mark.parametrize(("code", "error"), [("1 / 0", ZeroDivisionError), ("(1).half", AttributeError)])
def test_a_bug_in_a_module_is_shown_whole(tmp_path, monkeypatch, code, error):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_plugin", raising=False)
    (tmp_path / "broken_plugin.py").write_text(code)
    with pytest.raises(error) as shown:
        registry.load(["broken_plugin"])
    place = f"It was raised in the plugin broken_plugin: {tmp_path / 'broken_plugin.py'}, line 1."
    assert registry.raised_in(shown.value) == place


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import sys; sys.exit(3)", "ends the program while it is imported: take its exit out."),
        ("def f(:", "cannot be imported: invalid syntax (faulty_plugin.py, line 1)"),
        (
            "from peakpoint import register; register('optimiser', 'x')",
            "cannot be imported: There is no kind of component named optimiser: did you mean optimizer?",
        ),
    ],
)
def test_a_module_that_does_not_register_or_ends_the_program_is_named(tmp_path, monkeypatch, code, fault):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "faulty_plugin.py").write_text(code)
    with pytest.raises(CheckpointError) as refusal:
        registry.load(["faulty_plugin"])
    assert str(refusal.value) == f"plugins: faulty_plugin {fault}"


@dataclass(kw_only=True)
class Tiny(Model):
    width: int = 3

    def build(self, image_shape, num_classes):
        channels, height, width = image_shape
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(channels * height * width, self.width),
            torch.nn.Linear(self.width, num_classes),
        )


@dataclass(kw_only=True)
class Plain(Optimizer):
    lr: float = 0.5
    weight_decay: float = 0.25
    clip_norm: float | None = None

    def build(self, groups):
        return torch.optim.SGD(groups, lr=self.lr)


@dataclass(kw_only=True)
class Never(Policy):
    """A policy of one method."""

    reason: str = "because"

    def decide(self, event):
        return []


@dataclass(kw_only=True)
class Half(Scheduler):
    warmup_epochs: float = 0.0

    def build(self, total, warmup):
        return lambda step: 0.5


@pytest.fixture
def registered(own_components):
    """Components of somebody's own."""
    register("model", "tiny_of_mine")(Tiny)
    register("optimizer", "plain_of_mine")(Plain)
    register("scheduler", "half_of_mine")(Half)
    register("policy", "never_of_mine")(Never)
    register_schemas()


@pytest.mark.usefixtures("registered")
def test_what_is_added_is_a_choice_with_values_like_any_other():
    for group, name in (
        ("model", "tiny_of_mine"), ("optimizer", "plain_of_mine"), ("checkpoint/policy", "never_of_mine"),
        ("scheduler", "half_of_mine"),
    ):  # fmt: skip
        assert name in choices(group)
    options = ["model=tiny_of_mine", "model.width=5", "optimizer=plain_of_mine", "optimizer.lr=0.125"]
    policy = ["checkpoint/policy=[never_of_mine,best]", "checkpoint.policy.never_of_mine.reason=so"]
    config = checked(compose(*options, *policy))
    assert (config.model, config.optimizer.lr) == (Tiny(name="tiny_of_mine", width=5), 0.125)
    assert config.checkpoint.policy["never_of_mine"] == Never(reason="so")


@pytest.mark.usefixtures("registered")
def test_what_is_added_is_built_with_its_configuration():
    made = parts(
        "model=tiny_of_mine", "model.width=5", "optimizer=plain_of_mine", "pruning.target=0.5",
        "checkpoint/policy=[never_of_mine]",
        "scheduler=half_of_mine", base=[o for o in TINY if not o.startswith("model")],
    )  # fmt: skip
    assert made.state.model[1].out_features == 5
    assert [g["lr"] for g in made.state.optimizer.param_groups] == [0.25, 0.25]
    assert {g["weight_decay"] for g in made.state.optimizer.param_groups} == {0.0, 0.25}
    assert isinstance(made.policies["never_of_mine"], Never)


@pytest.mark.usefixtures("registered")
def test_a_wrong_key_or_value_for_what_is_added_is_refused():
    with pytest.raises(
        UserError, match=r"model\.widht is not a key of this configuration: did you mean model\.width"
    ):
        checked(compose("model=tiny_of_mine", "+model.widht=5"))


@pytest.mark.usefixtures("own_components")
def test_a_component_without_values_or_without_its_schema_says_how_its_file_begins():
    @dataclass(kw_only=True)
    class Bare(Optimizer):
        def build(self, groups):
            return torch.optim.SGD(groups, lr=self.lr)

    register("optimizer", "bare_of_mine")(Bare)
    register_schemas()
    with pytest.raises(
        UserError, match=r"^optimizer\.lr has no value: .* conf/optimizer/bare_of_mine\.yaml\.$"
    ):
        checked(compose("optimizer=bare_of_mine"))
    config = compose("optimizer=bare_of_mine", "optimizer.lr=1")
    OmegaConf.update(config, "optimizer", {"lr": 1.0}, merge=False)
    with pytest.raises(UserError, match=r"its first line is defaults: \[/schema/optimizer/NAME@_here_, "):
        checked(config)


@pytest.mark.usefixtures("registered")
def test_a_component_does_not_take_the_name_of_another():
    with pytest.raises(
        UserError, match=r"^The policy best is already registered, by \S+\.best: choose another name\.$"
    ):
        register("policy", "best")(Never)
    register("policy", "never_of_mine")(Never)  # a module imported twice
    assert registry.find("policy", "best") is not Never


def unfit(kind):
    """What cannot be a component of a kind, with the member that it lacks."""
    needs, method = registry.KINDS[kind], registry.KINDS[kind].methods[0]
    yield dataclass(type("Empty", (), {})), method
    yield dataclass(type("NotCallable", (), {method: 3})), method
    yield "text", method
    if not needs.base:
        yield type("NoFunction", (), {}), method
        return
    base = pkgutil.resolve_name(needs.base)
    yield type("Unwritten", (base,), {}), sorted(base.__abstractmethods__)[0]
    yield (lambda: None) if kind != "model" else 3, method
    for member in needs.attributes:
        members = {name: print for name in (*needs.methods, *needs.attributes) if name != member}
        yield dataclass(type("Lacking", (), members)), member


@pytest.mark.usefixtures("own_components")
@pytest.mark.parametrize("kind", registry.KINDS)
def test_what_lacks_what_its_kind_needs_is_one_line_that_names_it(kind):
    for component, member in unfit(kind):
        message = rf"^The {kind} unfit \(.*\) has no {member}: make it a .* with {member}\.$"
        with pytest.raises(UserError, match=message):
            register(kind, "unfit")(component)
    assert "unfit" not in registry.table(kind)


@pytest.mark.usefixtures("own_components")
def test_a_class_that_is_no_dataclass_and_an_unknown_kind_are_one_line():
    members = {"decide": print, "build": print, "at_most": print}
    message = (
        r"^The policy bare \(.*\.Bare\) is not a dataclass: write @dataclass\(kw_only=True\) above it\.$"
    )
    with pytest.raises(UserError, match=message):
        register("policy", "bare")(type("Bare", (), members))
    with pytest.raises(UserError, match=r"^There is no kind of component named modle: did you mean model\?$"):
        register("modle", "bare")


@pytest.mark.usefixtures("own_components")
def test_a_function_and_a_dataclass_are_schedules_and_any_callable_a_model():
    @register("schedule", "power")
    @dataclass(frozen=True)
    class Power:
        exponent: float = 1.0

        def __call__(self, progress):
            return progress**self.exponent

    register("schedule", "half")(lambda progress: progress / 2)
    register("model", "network")(torch.nn.Linear)
    assert registry.make("schedule", "power", {"exponent": 2})(0.5) == 0.25
    assert registry.make("schedule", "half", {})(0.5) == 0.25


@pytest.mark.parametrize(
    "line",
    [
        "from peakpoint.trainer.config.plugins import add_model",
        "from trainer.plugins import add_model",
        "from peakpoint.models import ModelRecord, register",
        "from peakpoint import models\nmodels.register('mine')",
        "import peakpoint.trainer\n@peakpoint.trainer.register_source('mine')\nclass Mine: pass",
    ],
)
def test_a_plugin_of_an_earlier_version_gets_the_line_to_write(tmp_path, monkeypatch, line):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "old_plugin.py").write_text(line)
    with pytest.raises(
        CheckpointError, match=r"^plugins: old_plugin cannot be imported: .* register\.$"
    ) as refusal:
        registry.load(["old_plugin"])
    assert "Components are added with @register(kind, name)" in str(refusal.value)


@pytest.mark.usefixtures("registered")
def test_a_range_of_a_plugin_is_one_line():
    @register("model", "ranged")
    @dataclass(kw_only=True)
    class Ranged(Tiny):
        def __post_init__(self):
            if self.width < 2:
                raise ValueError(f"model.width={self.width} is out of range: it must be at least 2.")

    with pytest.raises(UserError, match=r"^model\.width=1 is out of range: it must be at least 2\.$"):
        checked(compose("model=ranged", "model.width=1"))


@pytest.mark.usefixtures("own_components")
@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("criterion_options.pwer=2", "The criterion noise has no option pwer; its options: seed, power."),
        ("criterion_options.power=2", "The criterion noise needs its option seed; its options: seed, power."),
        ("criterion_options.seed=x", "The criterion noise cannot have this seed: Value 'x' of type 'str' .*"),
        ("schedule_options.power=2", "The schedule cubic has no option power; its options: none."),
    ],
    ids=str,
)
def test_the_options_of_a_criterion_are_checked_before_anything_is_built(option, sentence):
    @register("criterion", "noise")
    @dataclass(frozen=True)
    class Noise(Criterion):
        seed: int
        power: float = 1.0

        def score(self, context):
            return context.weight

    chosen = [] if option.startswith("schedule") else ["pruning.criterion=noise"]
    with pytest.raises(UserError, match=rf"^pruning\.{option.partition('.')[0]}: {sentence}$"):
        checked(compose(*chosen, f"pruning.{option}"))
    with pytest.raises(UserError, match=r"^pruning\.criterion_options has no effect without a criterion: "):
        checked(compose("pruning=none", "pruning.criterion_options.power=2"))


@pytest.mark.usefixtures("registered")
def test_a_network_whose_weights_have_no_values_is_refused_before_anything_begins(train, tmp_path):
    @register("model", "lazy_of_mine")
    @dataclass(kw_only=True)
    class Lazy(Model):
        def build(self, image_shape, num_classes):
            return torch.nn.LazyLinear(2)

    done = train(*[o for o in TINY if not o.startswith("model")], "model=lazy_of_mine", "hydra.run.dir=run")
    assert done.err == (
        "error: model.name=lazy_of_mine: weight has no values yet: let its build call the network once.\n"
    )
    assert not (tmp_path / "run").exists()


OUTPUTS = [*TINY, "plugins=[tests.trainer.outputs]", "model=outputs", "hydra.run.dir=run"]


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("more", r"float32 and shape \(16, 8\)"),
        ("fewer", r"float32 and shape \(16, 3\)"),
        ("maps", r"float32 and shape \(16, 4, 1, 1\)"),
        ("one", r"float32 and shape \(1, 4\)"),
        ("whole", r"int64 and shape \(16, 4\)"),
        ("tuple", "type tuple"),
        ("nothing", "type NoneType"),
    ],
)
def test_a_network_whose_output_is_no_logits_is_one_line_before_the_first_step(train, tmp_path, how, found):
    done = train(*(o for o in OUTPUTS if o != "model.dropout=0.3"), f"model.how={how}").failed()
    sentence = rf"error: The output of the network is of {found}, and must be a tensor of floats of shape "
    assert re.fullmatch(rf"{sentence}\(16, 4\), a logit for each image and class: .*\.\n", done.err)
    assert status(tmp_path / "run")["state"] == "failed"
    assert list((tmp_path / "run").rglob("*.pt")) == []


@pytest.mark.parametrize(
    ("base", "build"),
    [
        (Tiny, lambda made: build_model(made, (1, 8, 8), 4)),
        (Plain, lambda made: build_optimizer(made, torch.nn.Linear(2, 2), EVERYTHING)),
        (Half, lambda made: build_schedule(made, 5, 10)),
    ],
)
def test_what_a_component_builds_is_checked_by_its_kind(base, build):
    made = type("Nothing", (base,), {"build": lambda *_: None})(name="of_mine")
    with pytest.raises(UserError, match=r"^The build of the .* of_mine has returned an object of type NoneT"):
        build(made)


def test_what_a_policy_builds_is_checked_before_torch_is_there(train, own_components, tmp_path):
    register("policy", "nothing_of_mine")(type("Nothing", (Never,), {"build": lambda _: None}))
    done = train(*TINY, "checkpoint/policy=[nothing_of_mine]", "hydra.run.dir=run")
    sentence = (
        "The build of the policy nothing_of_mine has returned an object of type NoneType: let it return a"
    )
    assert (done.code, done.err) == (1, f"error: {sentence} Policy.\n")
    assert not (tmp_path / "run").exists()


def test_a_field_of_a_type_without_values_is_named_with_its_class(own_components):
    @register("optimizer", "odd_of_mine")
    @dataclass(kw_only=True)
    class Odd(Plain):
        after: Callable = print

    with pytest.raises(UserError, match=r"^The optimizer odd_of_mine \(.*Odd\) cannot be .* type annotation"):
        register_schemas()
