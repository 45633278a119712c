"""estimate: what a run will store, against what runs do store."""

import json
from dataclasses import dataclass

import pytest
import torch

from peakpoint.base.registry import register
from peakpoint.checkpointing.policy import Policy
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import TINY, run_main


def estimated(cli_main, *overrides):
    return json.loads(cli_main("estimate", "--json", *overrides).output())


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer=adamwprune"],
        ["optimizer=adamwspam"],
        ["optimizer=sgd"],
        ["optimizer=sgd", "pruning=magnitude", "pruning.criterion=movement"],
    ],
    ids=" ".join,
)
def test_it_is_what_a_run_stores(words, tmp_path, cli_main):
    chosen = (*TINY, "model.dropout=0", *words, "epochs=1")
    found = estimated(cli_main, *chosen)
    assert run_main(*chosen, f"hydra.run.dir={tmp_path / 'run'}").code == 0
    root = tmp_path / "run" / "checkpoints"
    newest = listing.manifests(root)[-1]
    state = serialize.load(root / newest.file)
    weights = state["model_state_dict"].values()
    assert found["parameters"] == sum(w.numel() for w in weights)
    assert found["weights_bytes"] == sum(w.nbytes for w in weights)
    kept = [t for s in state["optimizer_state_dict"]["state"].values() for t in s.values()]
    kept += state["optimizer_state_dict"].get("pruning", {}).get("sums", [])
    assert found["optimizer_bytes"] == sum(t.nbytes for t in kept if isinstance(t, torch.Tensor))
    assert found["checkpoint_bytes"] == pytest.approx(newest.bytes, rel=0.05)


def test_compressed_is_what_compression_gives(whole_run, tmp_path, cli_main):
    found = estimated(cli_main, *TINY)
    root = whole_run / "checkpoints"
    state = serialize.load(root / listing.manifests(root)[-1].file)
    (saved,) = Store(tmp_path / "checkpoints", "run").save(
        [manifest("training/a.pt")], lambda f: serialize.dump(state, f, compress=True)
    )
    assert found["sparsity"] == 0.7
    assert found["compressed_bytes"] == pytest.approx(saved.bytes, rel=0.15)
    assert found["compressed_bytes"] < 0.5 * found["checkpoint_bytes"]
    dense = estimated(cli_main, *TINY, "pruning.target=0", "checkpoint/policy=[best]")
    masks = found["checkpoint_bytes"] - dense["checkpoint_bytes"]
    assert masks == pytest.approx(found["parameters"] / 8, rel=0.05)  # a bit a weight; biases have none


def test_what_is_kept_covers_what_a_run_kept(finished, cli_main):
    found = estimated(cli_main, *TINY, "checkpoint.interval_steps=4", "checkpoint.keep_last=2")
    assert found["kept"] == {
        "interval": 2, "best": 2, "top_k": 3, "sparsity": 2, "early_stopping": 0, "newest": 1, "in flight": 1,
    }  # fmt: skip
    assert found["peak_bytes"] == 11 * found["checkpoint_bytes"]
    root = finished / "checkpoints"
    held = listing.manifests(root)
    assert len(held) <= 10
    assert sum({m.digest: m.bytes for m in held}.values()) <= found["peak_bytes"]


@pytest.mark.usefixtures("own_components")
def test_a_policy_of_ones_own_says_how_many_it_keeps(cli_main):
    @register("policy", "every_evaluation")
    @dataclass(kw_only=True)
    class EveryEvaluation(Policy):
        def decide(self, event):
            return []

        def at_most(self, run):
            return run.epochs

    assert estimated(cli_main, *TINY, "checkpoint/policy=[every_evaluation]")["kept"]["every_evaluation"] == 3


def test_the_run_of_the_defaults_without_its_data(cli_main):
    found = estimated(cli_main)
    assert (found["network"], found["parameters"]) == ("resnet50", 23_705_252)
    assert found["kept"]["interval"] == 3
    out = cli_main("estimate", "pruning.target=0", "checkpoint/policy=[best]").succeeded().out
    for word in (
        "resnet50, adamwprune: 23,705,252 parameters",
        "                 checkpoints at most      dense   ",
        "one checkpoint                     1   284.9 MB   ",
        "in flight",
        "peak on disk",
    ):
        assert word in out


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optimizer=nope", "optimizer=nope is not a choice"),
        ("optimizer.lrr=1", "did you mean optimizer.lr?"),
        ("batch_size=0", "batch_size=0 is out of range"),
        ("data=npz", "train.npz"),
        ("plugins=[no_such_module_of_mine]", "plugins: no_such_module_of_mine cannot be imported"),
    ],
)
def test_a_wrong_configuration_is_one_line(override, sentence, cli_main, tmp_path, monkeypatch):
    monkeypatch.setenv("PEAKPOINT_DATA", str(tmp_path))
    code, out, err = cli_main("estimate", override)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert sentence in err
