"""Modules of one's own: named on the command line, imported before anything is composed."""

import re
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from peakpoint import models
from peakpoint.base.errors import CheckpointError, UserError
from peakpoint.checkpointing import policies
from peakpoint.trainer.config import plugins
from peakpoint.trainer.config.check import checked
from peakpoint.trainer.config.explain import choices
from tests.conftest import TINY, status
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
    assert plugins.named(argv) == modules


def test_a_module_that_cannot_be_imported_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import no_such_module_at_all")
    for module in ("no_such_module_at_all", "needs_more", "json.no_such_module"):
        with pytest.raises(CheckpointError, match=f"plugins: {module} cannot be imported: ") as refusal:
            plugins.load([module])
        assert "\n" not in str(refusal.value)


def test_a_bug_in_a_module_is_shown_whole(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        plugins.load(["broken_plugin"])


def test_a_module_is_imported_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "good_plugin.py").write_text("import sys\nsys.modules[__name__].loaded = True")
    plugins.load(["good_plugin", "good_plugin"])
    assert sys.modules.pop("good_plugin").loaded


@dataclass(kw_only=True)
class Tiny:
    name: str = "tiny_of_mine"
    width: int = 3


@dataclass(kw_only=True)
class Plain:
    name: str = "plain_of_mine"
    lr: float = 0.5
    weight_decay: float = 0.25
    clip_norm: float | None = None


@dataclass(kw_only=True)
class NeverSettings:
    reason: str = "because"


class Never:
    tags = ()

    def __init__(self, settings):
        self.settings = settings

    def decide(self, event):
        return []

    def keeps(self, manifests):
        return {}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def tiny(cfg, image_shape, num_classes):
    channels, height, width = image_shape
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(channels * height * width, cfg.width),
        torch.nn.Linear(cfg.width, num_classes),
    )


def plain(cfg, groups):
    return torch.optim.SGD(groups, lr=cfg.lr)


@pytest.fixture(scope="module", autouse=True)
def registered():
    plugins.add_model("tiny_of_mine", Tiny(), tiny)
    plugins.add_optimizer("plain_of_mine", Plain(), plain)
    plugins.add_policy("never_of_mine", NeverSettings(), Never)
    yield
    del policies.SETTINGS["never_of_mine"]  # other tests look at all that there are
    del plugins.OPTIMIZERS[Plain], models.registry._RECORDS["tiny_of_mine"]


def test_what_is_added_is_a_choice_with_values_like_any_other():
    for group, name in (
        ("model", "tiny_of_mine"), ("optimizer", "plain_of_mine"), ("checkpoint/policy", "never_of_mine"),
    ):  # fmt: skip
        assert name in choices(group)
    options = ["model=tiny_of_mine", "model.width=5", "optimizer=plain_of_mine", "optimizer.lr=0.125"]
    policy = ["checkpoint/policy=[never_of_mine,best]", "checkpoint.policy.never_of_mine.reason=so"]
    config = checked(compose(*options, *policy))
    assert (config.model, config.optimizer.lr) == (Tiny(width=5), 0.125)
    assert config.checkpoint.policy["never_of_mine"] == NeverSettings(reason="so")


def test_what_is_added_is_built_with_its_configuration():
    made = parts(
        "model=tiny_of_mine", "model.width=5", "optimizer=plain_of_mine", "pruning.target=0.5",
        "checkpoint/policy=[never_of_mine]", base=[o for o in TINY if not o.startswith("model")],
    )  # fmt: skip
    assert made.state.model[1].out_features == 5
    assert {g["weight_decay"] for g in made.state.optimizer.param_groups} == {0.0, 0.25}
    assert isinstance(made.policies["never_of_mine"], Never)


def test_a_wrong_key_or_value_for_what_is_added_is_refused():
    with pytest.raises(
        UserError, match=r"model\.widht is not a key of this configuration: did you mean model\.width"
    ):
        checked(compose("model=tiny_of_mine", "+model.widht=5"))


def test_a_policy_does_not_take_the_name_of_another():
    with pytest.raises(CheckpointError, match="A checkpoint policy named best exists"):
        plugins.add_policy("best", NeverSettings(), Never)
    assert policies.SETTINGS["best"] is not NeverSettings


def test_a_network_whose_weights_have_no_values_is_refused_before_anything_begins(train, tmp_path):
    plugins.add_model("lazy_of_mine", replace(Tiny(), name="lazy_of_mine"), lambda *_: torch.nn.LazyLinear(2))
    try:
        done = train(
            *[o for o in TINY if not o.startswith("model")], "model=lazy_of_mine", "hydra.run.dir=run"
        )
    finally:
        del models.registry._RECORDS["lazy_of_mine"]
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
    done = train(*(o for o in OUTPUTS if o != "model.dropout=0.3"), f"model.how={how}")
    assert done.code == 1
    sentence = rf"error: The output of the network is of {found}, and must be a tensor of floats of shape "
    assert re.fullmatch(rf"{sentence}\(16, 4\), a logit for each image and class: .*\.\n", done.err)
    assert status(tmp_path / "run")["state"] == "failed"
    assert list((tmp_path / "run").rglob("*.pt")) == []


def test_the_same_network_with_logits_trains(train):
    done = train(*(o for o in OUTPUTS if o != "model.dropout=0.3"), "epochs=1")
    assert done.code == 0, done.err
