"""A network and a data source of a plugin: every command finds them once it is named, and none before."""

import json
import re
import shutil
import sys

import pytest

from peakpoint import CheckpointError, load_model
from peakpoint.base import registry
from peakpoint.deployment.inference import evaluate, network
from tests.conftest import TINY, complete_run, run_main

PLUGIN = """
from dataclasses import dataclass, field

import torch

from peakpoint import register
from peakpoint.models import Model
from peakpoint.trainer.data.images import Images
from peakpoint.trainer.data.settings import Data


@dataclass(kw_only=True)
class Last:
    bias: bool = True


@register("model", "wide")
@dataclass(kw_only=True)
class Wide(Model):
    width: int = 12
    last: Last = field(default_factory=Last)

    def build(self, image_shape, num_classes):
        channels, height, width = image_shape
        return torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(channels * height * width, self.width),
            torch.nn.ReLU(),
            torch.nn.Linear(self.width, num_classes, bias=self.last.bias),
        )


@register("data", "stripes")
@dataclass(kw_only=True)
class Stripes(Data):
    root: str = "."
    val_fraction: float = 0.25
    image_size: int | None = None
    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0

    def read(self, split):
        labels = torch.arange(160 if split == "train" else 40) % 4
        noise = torch.randint(0, 60, (len(labels), 12, 12, 1), generator=torch.Generator().manual_seed(3))
        images = (noise + 40 * labels[:, None, None, None]).to(torch.uint8)
        return Images(images, labels, ("a", "b", "c", "d"))
"""
NAME = "plugin_of_this_test"
NAMED = f"plugins=[{NAME}]"
OURS = [a for a in TINY if not a.startswith(("model", "data"))]
CHOSEN = (
    NAMED,
    "model=wide",
    "model.last.bias=false",
    "data=stripes",
)
TEXTS = "\n".join(
    f"{name}: Said." for name in ("description", "intended_use", "limitations", "ethical_considerations")
)


def forget():
    """What the plugin registered, as in a process that never imported it."""
    registry._COMPONENTS["model"].pop("wide", None)
    registry._COMPONENTS["data"].pop("stripes", None)
    sys.modules.pop(NAME, None)


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory):
    """A finished run of the plugin's network on the plugin's data, and a release of it; not to be changed."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / f"{NAME}.py").write_text(PLUGIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        complete_run(folder / "run", *OURS, *CHOSEN)
        yield folder
        forget()


@pytest.fixture
def copied(with_plugin, tmp_path, monkeypatch):
    """A copy of the run, the plugin not imported."""
    shutil.copytree(with_plugin / "run", tmp_path / "run", symlinks=True)
    (tmp_path / "card.yaml").write_text(f"{TEXTS}\nlicense: mit\n")
    monkeypatch.chdir(tmp_path)
    forget()
    yield tmp_path / "run"
    forget()


PROMOTE = ("promote", "run", "--version", "1.0.0", "--card", "card.yaml", "--alias", "champion")
ASKED = f"The run used {NAMED}. Code is imported only at your word: add {NAMED} to the command"


def test_every_command_finds_what_the_plugin_registers(copied, cli_main):
    """Each is refused in one line first, since the plugin is forgotten before each."""
    for command in (
        ("select", "run"),
        PROMOTE,
        ("check", "run"),
        ("compare", "run", "run/checkpoints/production/latest.pt", "--rounds", "2"),
        ("export", "run", "out.pt2", "--format", "torch"),
    ):
        forget()
        code, out, err = cli_main(*command)
        assert (code, out) == (1, "")
        assert err.startswith("error: There is no model named wide")
        assert ASKED in err
        assert err.count("\n") == 1
        err = cli_main(*command, NAMED).succeeded().err
    forget()
    assert cli_main("verify", "--golden", "run")[:1] == (0,)
    assert "1 release agrees with its golden outputs" in cli_main("verify", "--golden", "run", NAMED)[1]
    made = json.loads((copied / "checkpoints/production/wide_v1.0.0.json").read_text())
    assert made["config"]["model"] == {"name": "wide", "options": {"width": 12, "last": {"bias": False}}}


def test_python_finds_it_too(copied):
    with pytest.raises(
        CheckpointError, match=r"in Python: load_model\(path, plugins=\['plugin_of_this_test'\]"
    ):
        load_model(copied)
    loaded = load_model(copied, plugins=[NAME])
    assert (loaded[1].out_features, loaded[3].bias) == (12, None)


def test_a_fault_of_the_plugin_names_the_plugin(copied, cli_main, monkeypatch):
    registry.load([NAME])
    code = compile("def build(self, *_):\n    raise ZeroDivisionError", "mine.py", "exec")
    exec(code, vars(sys.modules[NAME]))  # with the globals of the plugin
    monkeypatch.setattr(sys.modules[NAME].Stripes, "read", sys.modules[NAME].build)
    with pytest.raises(ZeroDivisionError) as shown:
        cli_main(*PROMOTE, NAMED)
    assert shown.value.__notes__ == [f"It was raised in the plugin {NAME}: mine.py, line 2."]


def test_a_rollback_does_not_need_the_code(copied, cli_main):
    assert cli_main(*PROMOTE, NAMED)[0] == 0
    assert cli_main(*PROMOTE[:3], "1.0.1", *PROMOTE[4:], NAMED)[0] == 0
    forget()
    assert "verified before (digests)" in cli_main("rollback", "run", "--to", "1.0.0").succeeded().out


def test_only_the_data_are_the_plugins(copied, monkeypatch):
    """A network of ours on data of a plugin: the line names the data source."""
    facts = evaluate.trained_with(*network.resolve(copied))
    with pytest.raises(CheckpointError) as refused:
        evaluate.data_of(facts)
    assert str(refused.value).startswith("There is no data named stripes")
    assert ASKED in str(refused.value)


def test_a_record_cannot_say_what_is_imported(copied, cli_main):
    """The names of a record are printed when they are names, and never imported."""
    root, manifest = network.resolve(copied)
    for recorded, message in ((["os; rm"], "add plugins=[module]"), ("antigravity", "add plugins=[module]")):
        facts = {**evaluate.trained_with(root, manifest)["config"], "plugins": recorded}
        with pytest.raises(CheckpointError, match="no model named wide") as refused:
            network.build(network.describe(copied), config=facts)
        assert message in str(refused.value)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("plugins=[no_such_module_here]", "plugins: no_such_module_here cannot be imported"),
        ("plugins=[mine/net.py]", "plugins: 'mine/net.py' is not the name of a module, such as my_module."),
        ("plugins=[", "plugins: '[' is not the name of a module"),
        ("plugins=", "plugins: '' is not the name of a module"),
        ("plugins=[json,,csv]", "plugins: '' is not the name of a module"),
    ],
)
def test_a_plugin_that_is_not_there_is_one_line(copied, cli_main, given, sentence):
    code, out, err = cli_main("select", "run", given)
    assert (code, out) == (1, "")
    assert sentence in err
    with pytest.raises(CheckpointError, match=r"cannot be imported|is not the name"):
        load_model(copied, plugins=registry.named([given]))


@pytest.mark.parametrize("given", ["no_such_module", [5], 5, None])
def test_plugins_that_are_no_list_of_names_are_one_line(copied, given):
    with pytest.raises(CheckpointError, match=f"^plugins={re.escape(repr(given))} is not a list of names"):
        load_model(copied, plugins=given)


def test_a_name_that_another_network_has_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "clashing_plugin.py").write_text(
        PLUGIN.replace('"wide"', '"lenet5"').replace("stripes", "bars")
    )
    monkeypatch.syspath_prepend(tmp_path)
    done = run_main("plugins=[clashing_plugin]", f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.code, done.out) == (1, "")
    named = "plugins: clashing_plugin cannot be imported"
    place = "peakpoint.models.catalogue.lenet"
    assert done.err == (
        f"error: {named}: The model lenet5 is already registered, by {place}: choose another name.\n"
    )
    registry._COMPONENTS["data"].pop("bars", None)
