"""A network of one's own, which reads text: from development to production, and in other processes."""

import gc
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from peakpoint import CheckpointError, CheckpointManager, load_model, register
from peakpoint.base import registry
from peakpoint.base.errors import UnregisteredError
from peakpoint.checkpointing.storage import locate
from peakpoint.checkpointing.storage.manifest import read_manifest
from peakpoint.commands.dispatch import main
from peakpoint.deployment.release import release
from tests.conftest import ROOT, one_line, process
from tests.states import differences

CONFIG = {"d_model": 8, "n_heads": 2, "vocab_size": 50}
TOKENS = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(0))

NETWORK = '''
from peakpoint import register
from torch import nn


class TextTransformer(nn.Module):
    """Two classes of a text, given as token ids."""

    def __init__(self, d_model, n_heads, vocab_size, dropout=0.1):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, d_model)
        self.body = nn.TransformerEncoderLayer(d_model, n_heads, 16, dropout, batch_first=True)
        self.head = nn.Linear(d_model, 2)

    def forward(self, tokens, mask=None):
        return {"logits": self.head(self.body(self.embed(tokens), src_key_padding_mask=mask).mean(1))}
'''
REGISTERED = '\nregister("model", "text_transformer")(TextTransformer)\n'


@pytest.fixture
def own(tmp_path, monkeypatch, own_components):
    """The class of the network, of this process alone: in a module that registers it nowhere."""
    (tmp_path / "my_text.py").write_text(NETWORK + REGISTERED)
    space: dict = {"__name__": "of_this_process"}
    exec(NETWORK, space)
    monkeypatch.chdir(tmp_path)
    return space["TextTransformer"]


def logits(network):
    with torch.no_grad():
        return network.eval()(TOKENS)["logits"]


def released(model, version="1.0.0", **more):
    manager = CheckpointManager("checkpoints/prod")
    facts = {
        "config": CONFIG,
        "metrics": {"accuracy": 0.92},
        "model_card": {"description": "Mood of a text."},
    }
    path = manager.save_production_checkpoint(model, version=version, **facts, **more)
    manager.close()
    return path


def elsewhere(code, folder):
    """What another process prints, or the last line of what it says on standard error, in one traceback."""
    done = process(
        "-c",
        f"import torch\nfrom peakpoint import load_model\n{code}",
        PYTHONPATH=os.pathsep.join([str(ROOT), str(folder)]),
    )
    assert done.stderr.count("Traceback") <= 1
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def test_from_development_to_production(own, tmp_path, capsys):
    model = own(**CONFIG)
    manager = CheckpointManager("checkpoints/dev")
    manager.save_milestone_checkpoint(
        model, metric_value=0.92, metric_name="accuracy", epoch=7, config=CONFIG, metadata={"notes": "Best"}
    )

    best_milestone = manager.get_latest_checkpoint("milestone")
    staging_model = load_model(best_milestone)

    assert (type(staging_model), staging_model.training, model.training) == (own, False, True)
    assert staging_model is not model
    assert torch.equal(logits(staging_model), logits(model))
    path = released(staging_model, example_inputs=TOKENS)
    assert torch.equal(logits(load_model(path)), logits(model))

    # Another process has neither the network nor its class.
    code = f"load_model({str(path.resolve())!r}"
    stated = elsewhere(f"{code})", tmp_path)
    assert stated.startswith(
        "peakpoint.base.errors.UnregisteredError: There is no model named text_transformer; there are: "
    )
    assert "add plugins=[module] to the command" in stated
    assert stated.endswith("build the network yourself, and load_checkpoint(path, model).")
    for text, line in (
        ("1 / 0", 1),
        (
            "from peakpoint import register\n@register('model', 'text_transformer')\n"
            "def build(**options):\n    return 1 / 0",
            4,
        ),
    ):
        (tmp_path / "faulty.py").write_text(text)
        stated = elsewhere(f"{code}, plugins=['faulty'])", tmp_path)
        assert f"It was raised in the plugin faulty: {tmp_path}/faulty.py, line {line}." in stated
    here = f"network = load_model({str(path)!r}, plugins=['my_text'])"
    here += f"\nprint(network(torch.tensor({TOKENS.tolist()}))['logits'].tolist())"
    assert torch.allclose(torch.tensor(json.loads(elsewhere(here, tmp_path))), logits(model), atol=1e-6)


def test_golden_outputs_of_an_example(own, capsys, monkeypatch, tmp_path):
    model = own(**CONFIG)
    path = released(model, example_inputs={"tokens": TOKENS, "mask": torch.zeros(3, 7, dtype=torch.bool)})
    assert model.training
    root, made = locate.locate(path)
    assert main(["verify", "--golden", "checkpoints/prod"]) == 0
    assert "1 release agrees with its golden outputs" in capsys.readouterr().out
    card = json.loads((root / "metadata/model_cards/v1.0.0.json").read_text())
    assert card["golden_outputs"] == "for the example inputs that its maker gave"

    del model
    gc.collect()
    monkeypatch.setattr("peakpoint.deployment.inference.builders._CLASSES", {})  # as in another process
    with pytest.raises(UnregisteredError):
        release.verify(root, made, run=True)
    assert main(["verify", "--golden", "--json", "checkpoints/prod"]) == 0
    (stated,) = json.loads(capsys.readouterr().out)
    assert (stated["verified"], stated["problem"]) == (True, None)
    assert stated["not_run"].startswith("its network is not registered here. There is no model named text_tr")
    assert main(["verify", "--golden", "checkpoints/prod"]) == 0
    assert "0 releases agree with their golden outputs, 1 not run" in capsys.readouterr().out

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_text", raising=False)
    assert main(["verify", "--golden", "checkpoints/prod", "plugins=[my_text]"]) == 0
    assert "1 release agrees" in capsys.readouterr().out
    # Other code under the same name is found out.
    network = registry.find("model", "text_transformer")

    class Louder(network):
        def forward(self, tokens, mask=None):
            return {"logits": 2 * super().forward(tokens, mask)["logits"]}

    monkeypatch.setitem(registry._COMPONENTS["model"], "text_transformer", Louder)
    assert main(["verify", "--golden", "checkpoints/prod"]) == 1
    assert "is not the one that was released: output.logits is off by" in capsys.readouterr().out


def test_without_an_example_the_card_says_that_nothing_is_golden(own, capsys):
    path = released(own(**CONFIG))
    page = Path("checkpoints/prod/metadata/model_cards/v1.0.0.md").read_text()
    assert "none: no example_inputs were given" in page
    assert main(["verify", "--golden", str(path)]) == 0
    assert "1 has none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ("a text", "must be what the network is called with: a tensor, a tuple of tensors, or a mapping"),
        ((), "must be what the network is called with"),
        ({"a b": TOKENS}, "the names of a mapping are those of the network's arguments"),
        ({"ids": TOKENS}, "cannot be run on its example inputs: .*unexpected keyword argument 'ids'"),
        (TOKENS.float(), "cannot be run on its example inputs: "),
        (TOKENS + 100, "cannot be run on its example inputs: index out of range"),
    ],
)
def test_an_example_that_the_network_does_not_take_is_one_line(own, inputs, sentence):
    model = own(**CONFIG)
    with one_line(CheckpointError, match=sentence):
        released(model, example_inputs=inputs)
    assert not list(Path("checkpoints/prod").glob("production/*.pt"))
    assert model.training


def test_outputs_that_no_two_calls_have_in_common_are_not_golden(own):
    class Noisy(own):
        def forward(self, tokens):
            return super().forward(tokens)["logits"] + torch.rand(1)

    model, generator = Noisy(**CONFIG), torch.get_rng_state()
    released(model, version="0.9.0", example_inputs=TOKENS)  # drawn from the same seed at each call
    assert torch.equal(torch.get_rng_state(), generator)

    class Counting(own):
        calls = 0

        def forward(self, tokens):
            self.calls += 1
            return super().forward(tokens)["logits"] * self.calls

    with pytest.raises(
        CheckpointError, match=r"outputs differ from call to call .*: leave example_inputs out"
    ):
        released(Counting(**CONFIG), example_inputs=TOKENS)


def test_what_the_process_knows_of_a_network_that_is_gone(own):
    """Its class and its config; and what an earlier process saved under the same root."""
    model = own(**CONFIG)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    manager = CheckpointManager("checkpoints/dev")
    path = manager.save_milestone_checkpoint(model, 0.9, "accuracy", 1, CONFIG)
    bare = manager.save_milestone_checkpoint(model, 0.95, "accuracy", 2)
    assert not differences(load_model(bare).state_dict(), weights)
    del model
    gc.collect()
    assert not differences(load_model(path).state_dict(), weights)
    with pytest.raises(CheckpointError, match=r"no model named text_transformer.* load_checkpoint"):
        load_model(bare)


def test_two_networks_of_one_class_are_not_taken_for_each_other(tmp_path):
    """Their weights fit each other: the file says whose it is."""
    networks = [nn.Sequential(nn.Linear(4, 4), kind()) for kind in (nn.ReLU, nn.Tanh)]
    manager = CheckpointManager(tmp_path)
    paths = [
        manager.save_milestone_checkpoint(network, 0.5 + number / 10, "accuracy", number)
        for number, network in enumerate(networks)
    ]
    assert [type(load_model(path)[1]) for path in paths] == [nn.ReLU, nn.Tanh]


def test_a_registered_network_with_another_config_is_one_line(own, tmp_path):
    register("model", "text_transformer")(own)
    manager = CheckpointManager("dev")
    for options, sentence in (
        ({**CONFIG, "depth": 3}, "has no option depth"),
        ({"d_model": 8}, "needs its option n_heads"),
        ({**CONFIG, "vocab_size": 10**11}, r"embed.weight is \(50, 8\) in the file"),
    ):
        model = own(**CONFIG)
        path = manager.save_training_checkpoint(
            model, torch.optim.SGD(model.parameters()), epoch=0, step=1, config=options
        )
        assert read_manifest(path.with_suffix(".json")).metadata["network"] == "text_transformer"
        del model
        gc.collect()
        with pytest.raises(CheckpointError, match=sentence):
            load_model(path)
