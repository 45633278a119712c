"""promote: on real runs, in every form, with a whole record and without one."""

import json
import re
import shutil
from importlib import metadata

import pytest
import torch
from huggingface_hub import ModelCard

from peakpoint import load_model
from peakpoint.checkpointing.storage import aliases, journal, listing
from peakpoint.deployment.inference import evaluate, golden, network
from peakpoint.deployment.release import release
from tests.commands.releases.promote_cases import best, card_of, logits, refused, tree


def test_a_run_its_best_checkpoint_becomes_a_release(trained, promote):
    root = trained / "checkpoints"
    expected = logits(best(trained))
    out = promote(trained, "1.2.0", "--reason", "the first that is good enough").output()
    assert f"lenet5 1.2.0 from {trained / 'checkpoints' / 'milestone'}" in out
    assert "(epoch 3, step 24)" in out  # what select chooses: the best of those at the target sparsity
    assert "accuracy           28.57%     28.57%" in out
    manifest = listing.releases(root)[-1]
    assert manifest.file == "production/lenet5_v1.2.0.pt"
    release.verify(root, manifest, run=True)  # every digest, and the golden outputs
    for file in (
        "production/lenet5_v1.2.0.config.json",
        "metadata/model_cards/v1.2.0.json",
        "metadata/model_cards/v1.2.0.md",
        "metadata/golden/v1.2.0.safetensors",
    ):
        assert f"wrote  {root / file}" in out
        assert file in manifest.companions
    assert torch.equal(logits(root / manifest.file), expected)
    assert set(torch.load(root / manifest.file, weights_only=True)) & {"optimizer_state_dict"} == set()
    assert (manifest.epoch, manifest.global_step) == (3, 24)
    assert manifest.sparsity == pytest.approx(0.7, abs=1e-3)
    assert [f["reason"] for f in journal.recorded(root)] == ["the first that is good enough"]
    assert aliases.current(root) == {}
    assert "1.2.0" in (root / "metadata" / "CHANGELOG.md").read_text()


def test_the_card_is_filled_from_the_record(trained, promote):
    promote(trained, "1.0.0", "--reason", "because")
    root = trained / "checkpoints"
    found, record = card_of(root, "1.0.0"), json.loads((trained / "run.json").read_text())
    source = next(m for m in listing.manifests(root) if root / m.file == best(trained))
    assert found["performance"] == pytest.approx(dict(source.metrics))
    test_rows = [json.loads(row) for row in (trained / "metrics.jsonl").read_text().splitlines()]
    tested = next(r for r in test_rows if r["kind"] == "test" and r["which"] == "selected")
    assert [(r["split"], r["samples"]) for r in found["results"]] == [("val", 14), ("test", 40)]
    assert found["results"][1]["metrics"] == tested["metrics"]
    assert found["sparsity"] == pytest.approx(source.sparsity)
    weights = list(load_model(root / "production" / "lenet5_v1.0.0.pt").parameters())
    assert found["weights"]["nonzero"] == sum(int((w != 0).sum()) for w in weights)
    assert found["data"]["train_sha256"] == record["data"]["train_sha256"]
    assert found["data"]["augmentation"] == "random crops after a padding of 2"
    training, origin = found["training"], found["provenance"]
    assert (training["epoch"], training["attempts"], training["seed"]) == (3, 1, 0)
    assert 0 < training["hours"] < 0.1
    assert training["optimizer"]["name"] == "adamwprune"
    assert training["packages"]["torch"] == metadata.version("torch")
    assert {p["scope"]: p["best_epoch"] for p in training["peaks"]} == {"overall": 1, "sparsity >= 0.70": 3}
    assert (origin["digest"], origin["run"]) == (source.digest, record["run"])
    assert (origin["reason"], origin["git_commit"]) == ("because", record["git_commit"])
    assert "model=lenet5" in origin["command"]
    assert str(trained.parent) not in json.dumps(found)  # no paths of the machine
    page = ModelCard.load(root / "metadata" / "model_cards" / "v1.0.0.md")
    values = {(r.dataset_split, r.metric_name): r.metric_value for r in page.data.eval_results}
    assert values["test", "Accuracy"] == tested["metrics"]["accuracy"]
    assert (page.data.license, page.data.datasets) == ("apache-2.0", ["synthetic"])
    assert "Images that nobody took." in page.text


def test_a_file(trained, promote):
    path = next((trained / "checkpoints" / "milestone").glob("best_accuracy_0.*.pt"))
    expected = logits(path)
    assert promote(path, "0.1.0")[0] == 0
    made = listing.releases(trained / "checkpoints")[-1]
    assert made.epoch == 1
    assert torch.equal(logits(trained / "checkpoints" / made.file), expected)
    found = card_of(trained / "checkpoints", "0.1.0")
    assert [r["split"] for r in found["results"]] == ["val"]  # the test set was not read with these weights
    assert found["provenance"]["reason"] == "accuracy 0.2857 is the first"


def test_a_pointer_and_a_checkpoint_that_recorded_nothing(trained, promote):
    step_20 = next((trained / "checkpoints" / "training").glob("*_step_00000020.pt"))
    out = promote(step_20, "0.1.0").succeeded().out
    assert "accuracy           " in out
    assert re.search(r" -     \d+\.\d\d%", out)  # measured, and nothing to compare it with
    assert listing.releases(trained / "checkpoints")[-1].metrics.keys() == {
        "loss",
        "accuracy",
        "top5_accuracy",
        "f1_score",
    }
    assert promote(trained / "checkpoints" / "milestone" / "best_loss.pt", "0.1.1")[0] == 0


@pytest.mark.parametrize(
    ("changes", "suffix", "most"),
    [
        (("format=safetensors",), ".safetensors", 66_000),
        (("format=safetensors", "dtype=float16"), ".safetensors", 34_000),
        (("dtype=bfloat16",), ".pt", 40_000),
        (("dtype=float16", "compress=true"), ".pt", 24_000),
    ],
)
def test_the_forms(changes, suffix, most, trained, promote):
    options = [part for change in changes for part in ("--set", change)]
    loss_before = json.loads(best(trained).with_suffix(".json").read_text())["metrics"]["loss"]
    assert promote(trained, "1.0.0", *options)[0] == 0
    root = trained / "checkpoints"
    made = listing.releases(root)[-1]
    assert (root / made.file).suffix == suffix
    assert made.bytes < most
    release.verify(root, made, run=True)
    dtype = dict(change.split("=") for change in changes).get("dtype", "float32")
    assert made.metadata["release"]["dtype"] == dtype
    assert torch.allclose(logits(root / made.file), logits(best(trained)), atol=1e-2)
    weights, _ = network.contents(root, made)
    assert {w.dtype for w in weights.values() if w.is_floating_point()} == {getattr(torch, dtype)}
    # The recorded metrics are those of these weights, not of the checkpoint.
    measured = evaluate.measure(network.load(root, made), evaluate.trained_with(root, made))
    assert made.metrics == measured.metrics
    assert (made.metrics["loss"] == loss_before) == (dtype == "float32")
    assert (
        card_of(root, "1.0.0")["results"][0]["of"]
        == f"the released weights, {dtype}, evaluated at the release"
    )


def test_from_staging_into_production(trained, promote, tmp_path, cli_main, texts):
    before = tree(trained)
    staging, prod = tmp_path / "staging", tmp_path / "prod" / "checkpoints"
    assert promote(trained, "1.1.0-rc.1", "--into", staging, "--reason", "to be looked at")[0] == 0
    assert tree(trained) == before  # the run is left as it was
    texts.write_text("license: mit\n")  # the other texts come from the card of the staged release
    staged = staging / "production" / "lenet5_v1.1.0-rc.1.pt"
    assert promote(staged, "1.1.0", "--into", prod, "--alias", "champion")[0] == 0
    assert aliases.current(prod) == {"champion": "1.1.0"}
    assert aliases.current(staging) == {}
    assert torch.equal(logits(prod), logits(best(trained)))
    found = card_of(prod, "1.1.0")
    assert (found["description"], found["license"]) == ("Tells synthetic classes apart.", "mit")
    assert found["training"] == card_of(staging, "1.1.0-rc.1")["training"]
    origin = found["provenance"]
    assert (origin["released_before_as"], origin["before"]["reason"]) == ("1.1.0-rc.1", "to be looked at")
    assert origin["before"]["digest"] == json.loads(best(trained).with_suffix(".json").read_text())["digest"]
    assert cli_main("verify", tmp_path / "prod", staging)[0] == 0


def test_dry_run_measures_and_writes_nothing(trained, promote, tmp_path):
    before = tree(tmp_path)
    out = (
        promote(trained, "1.0.0", "--dry-run", "--into", tmp_path / "prod", "--alias", "champion")
        .succeeded()
        .out
    )
    assert "accuracy           28.57%     28.57%" in out
    assert (
        f"not written: --dry-run. It would be {tmp_path / 'prod' / 'production' / 'lenet5_v1.0.0.pt'}" in out
    )
    assert tree(tmp_path) == before


def test_json(trained, promote):
    out = promote(trained, "1.0.0", "--json", "--alias", "challenger_1", "--set", "golden=3").succeeded().out
    found = json.loads(out, parse_constant=pytest.fail)
    root = trained / "checkpoints"
    assert (found["file"], found["root"]) == ("production/lenet5_v1.0.0.pt", str(root))
    assert (found["samples"], found["alias"], found["dry_run"]) == (14, "challenger_1", False)
    assert found["measured"]["accuracy"] == pytest.approx(found["recorded"]["accuracy"])
    assert all((root / name).stat().st_size == size for name, size in found["written"].items())
    assert len(found["written"]) == 6
    images, outputs = golden.read(root, listing.releases(root)[-1])
    assert (len(images), len(outputs)) == (3, 3)
    reason = card_of(root, "1.0.0")["provenance"]["reason"]
    assert reason.startswith("chosen by the rules default, kept for: ")
    assert json.loads(promote(trained, "1.0.1", "--json", "--dry-run").succeeded().out)["written"] == {}


def test_the_test_set_is_read_again_when_asked_for(trained, promote):
    out = promote(trained, "1.0.0", "--set", "split=test").succeeded().out
    assert "test, 40 images" in out
    assert re.search(r"accuracy +30.00% +30.00%", out)  # against what the run measured at its end
    made = listing.releases(trained / "checkpoints")[-1]
    assert made.metrics["accuracy"] == pytest.approx(0.2857, abs=1e-4)  # that of the validation split
    assert [r["split"] for r in card_of(trained / "checkpoints", "1.0.0")["results"]] == ["test", "val"]


def test_checkpoints_without_the_record_of_their_run(trained, promote, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "copied", symlinks=True)
    assert promote(tmp_path / "copied", "1.0.0")[0] == 0
    found = card_of(tmp_path / "copied", "1.0.0")
    assert found["training"]["optimizer"]["name"] == "adamwprune"  # the checkpoint itself says so
    assert (found["training"]["peaks"], found["training"]["hours"]) == ([], None)


def test_a_record_that_is_broken_or_of_another_run_is_reported(trained, promote):
    record = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(json.dumps(record | {"run": "another"}))
    refused(promote(trained, "1.0.0"))
    (trained / "run.json").write_text(json.dumps(record))
    rows = (trained / "metrics.jsonl").read_text()
    (trained / "metrics.jsonl").write_text('{"kind": "eval"}\n' + rows)
    assert "metrics.jsonl, line 1 is not a row of metrics" in refused(promote(trained, "1.0.0"))
    (trained / "metrics.jsonl").write_text(rows)
    assert not list((trained / "checkpoints" / "production").glob("*"))
    (trained / "run.json").write_text("{")
    assert f"{trained / 'run.json'} is not JSON" in refused(promote(trained, "1.0.0"))
