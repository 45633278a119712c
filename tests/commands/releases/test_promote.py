"""promote: on real runs, in every form, and everything that must not be released."""

import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from peakpoint import load_model
from peakpoint.base.lock import briefly
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import aliases, journal, listing, store
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.inference import evaluate, network
from peakpoint.deployment.release import release, signing
from tests.checkpointing.checkpoint_cases import damage, files_no_larger_than
from tests.conftest import ROOT, TINY, run_main
from tests.deployment.release.test_signing import allow, make_key
from tests.skips import HAS_CUDA

TEXTS = """
description: Tells synthetic classes apart.
intended_use: Tests.
limitations: [Images that nobody took.]
ethical_considerations: None known.
license: apache-2.0
"""


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.yaml"
    path.write_text(TEXTS)
    return path


@pytest.fixture
def promote(cli_main, texts):
    """Run promote with the texts of a card: (exit code, stdout, stderr)."""
    return lambda path, version, *more: cli_main(
        "promote", path, "--version", version, "--card", texts, *more
    )


@pytest.fixture(scope="session")
def of_other_classes(tmp_path_factory):
    """A run of another network: it has three classes."""
    run = tmp_path_factory.mktemp("other") / "run"
    done = run_main(*TINY, "data.num_classes=3", "max_steps=8", f"hydra.run.dir={run}")
    assert done.code == 0, done.err
    return run


def best(run: Path) -> Path:
    return next((run / "checkpoints" / "milestone").glob("best_accuracy_at_sparsity_0.70_*.pt"))


def tree(folder: Path) -> dict[str, int]:
    """Every file below a folder, with its size; locks and what is only read do not count."""
    return {str(p): p.lstat().st_size for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def refused(done) -> str:
    """The one line of a refusal."""
    code, out, err = done
    assert (code, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def card_of(root: Path, version: str) -> dict:
    return json.loads((root / "metadata" / "model_cards" / f"v{version}.json").read_text())


def logits(path) -> torch.Tensor:
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_model(path)(images)


def changed(run: Path, *, metrics=None, weight=None) -> Path:
    """A checkpoint as the store writes it, of the best state with other metrics or another weight."""
    target = Store(run / "checkpoints", "another")
    [source] = [m for m in store.manifests(target.root) if target.path(m) == best(run)]
    state = serialize.load(best(run))
    if weight is not None:
        state["model_state_dict"]["conv1.bias"][0] = weight  # biases are not pruned
    role = replace(source, file="milestone/changed.pt", run="another", sequence=0)
    role = role if metrics is None else replace(role, metrics={**source.metrics, **metrics})
    return target.path(target.save(role, lambda file: serialize.dump(state, file)))


def test_a_run_its_best_checkpoint_becomes_a_release(trained, promote):
    root = trained / "checkpoints"
    expected = logits(best(trained))
    code, out, err = promote(trained, "1.2.0", "--reason", "the first that is good enough")
    assert (code, err) == (0, "")
    assert f"lenet5 1.2.0 from {trained / 'checkpoints' / 'milestone'}" in out
    assert "(epoch 3, step 24)" in out  # what select chooses: the best of those at the target sparsity
    assert "accuracy           0.2857     0.2857" in out
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
        assert file in manifest.metadata["digests"]
    assert torch.equal(logits(root / manifest.file), expected)
    assert set(torch.load(root / manifest.file, weights_only=True)) & {"optimizer_state_dict"} == set()
    assert (manifest.epoch, manifest.global_step) == (3, 24)
    assert manifest.sparsity == pytest.approx(0.7, abs=1e-3)
    assert [f["reason"] for f in journal.vouched(root)] == ["the first that is good enough"]
    assert aliases.current(root) == {}
    assert "1.2.0" in (root / "metadata" / "CHANGELOG.md").read_text()


def test_the_card_is_filled_from_the_record(trained, promote):
    promote(trained, "1.0.0", "--reason", "because")
    root = trained / "checkpoints"
    found, record = card_of(root, "1.0.0"), json.loads((trained / "run.json").read_text())
    source = next(m for m in store.manifests(root) if root / m.file == best(trained))
    assert found["performance"] == pytest.approx(dict(source.metrics))
    test_rows = [json.loads(row) for row in (trained / "metrics.jsonl").read_text().splitlines()]
    tested = next(r for r in test_rows if r["kind"] == "test" and r["which"] == "selected")
    assert [(r["split"], r["samples"]) for r in found["results"]] == [("val", 14), ("test", None)]
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


def test_a_release_without_a_reason(trained, promote):
    promote(trained, "1.0.0")
    message = card_of(trained / "checkpoints", "1.0.0")["provenance"]["reason"]
    assert message.startswith("chosen by the rules default, kept for: ")


def test_a_pointer_and_a_checkpoint_that_recorded_nothing(trained, promote):
    step_20 = next((trained / "checkpoints" / "training").glob("*_step_00000020.pt"))
    code, out, _ = promote(step_20, "0.1.0")
    assert code == 0
    assert "accuracy           " in out
    assert " -     0." in out  # measured, and nothing to compare it with
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
    # What is told is what these weights measure, not what the checkpoint did.
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
    texts.write_text("license: mit\n")  # of the rest the card of the staged release tells
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
    code, out, _ = promote(trained, "1.0.0", "--dry-run", "--into", tmp_path / "prod", "--alias", "champion")
    assert code == 0
    assert "accuracy           0.2857     0.2857" in out
    assert (
        f"not written: --dry-run. It would be {tmp_path / 'prod' / 'production' / 'lenet5_v1.0.0.pt'}" in out
    )
    assert tree(tmp_path) == before


def test_json(trained, promote):
    code, out, _ = promote(trained, "1.0.0", "--json", "--alias", "challenger_1")
    found = json.loads(out, parse_constant=pytest.fail)
    root = trained / "checkpoints"
    assert (code, found["file"], found["root"]) == (0, "production/lenet5_v1.0.0.pt", str(root))
    assert (found["samples"], found["alias"], found["dry_run"]) == (14, "challenger_1", False)
    assert found["measured"]["accuracy"] == pytest.approx(found["recorded"]["accuracy"])
    assert all((root / name).stat().st_size == size for name, size in found["written"].items())
    assert len(found["written"]) == 6
    code, out, _ = promote(trained, "1.0.1", "--json", "--dry-run")
    assert (code, json.loads(out)["written"]) == (0, {})


def test_the_test_set_is_read_again_when_asked_for(trained, promote):
    code, out, _ = promote(trained, "1.0.0", "--set", "split=test")
    assert code == 0
    assert "test, 40 images" in out
    assert re.search(r"accuracy +0.3000 +0.3000", out)  # against what the run measured at its end
    made = listing.releases(trained / "checkpoints")[-1]
    assert made.metrics["accuracy"] == pytest.approx(0.2857, abs=1e-4)  # that of the validation split
    assert [r["split"] for r in card_of(trained / "checkpoints", "1.0.0")["results"]] == ["test", "val"]


def test_golden_outputs_as_many_as_asked_for(trained, promote):
    from peakpoint.deployment.inference import golden

    promote(trained, "1.0.0", "--set", "golden=3")
    root = trained / "checkpoints"
    images, outputs = golden.read(root, listing.releases(root)[-1])
    assert (len(images), len(outputs)) == (3, 3)


# --- What is refused; nothing is written then.


def test_a_card_that_says_too_little(trained, cli_main, texts):
    before = tree(trained)
    texts.write_text(TEXTS.replace("license: apache-2.0", "").replace("Tests.", "TODO"))
    message = refused(cli_main("promote", trained, "--version", "1.0.0", "--card", texts))
    assert message == (
        f"The model card lacks intended_use and license: write them in {texts} or with --set card.NAME=TEXT."
    )
    message = refused(cli_main("promote", trained, "--version", "1.0.0"))
    assert "lacks description, intended_use, limitations, ethical_considerations and license" in message
    assert "conf/release/card.yaml, in a file of your own (--card FILE), or with --set" in message
    assert tree(trained) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason=HAS_CUDA)
def test_a_device_that_is_not_here(trained, promote):
    before = tree(trained)
    assert "There is no device 'cuda' here" in refused(promote(trained, "1.0.0", "--device", "cuda"))
    assert tree(trained) == before


def test_a_wrong_path(trained, promote, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no checkpoints: name a run directory" in refused(promote(tmp_path / "empty", "1.0.0"))
    assert "run.json is not a readable checkpoint manifest" in refused(promote(trained / "run.json", "1.0.0"))


def test_a_version_that_is_taken(trained, promote):
    promote(trained, "1.0.0")
    before = tree(trained)
    for version in ("1.0.0", "1.0.0+again"):
        for path in (trained, best(trained)):
            assert "is released already" in refused(promote(path, version, "--dry-run"))
            assert "is released already" in refused(promote(path, version))
    assert tree(trained) == before


def test_another_network_needs_a_major_version(trained, of_other_classes, promote):
    root = trained / "checkpoints"
    promote(trained, "1.0.0")
    before = tree(trained)
    for more in ((), ("--dry-run",)):
        message = refused(promote(of_other_classes, "1.1.0", "--into", trained, *more))
        assert "Version 1.1.0 would not fit 1.0.0" in message
        assert message.endswith("2.0.0.")
    assert tree(trained) == before
    assert promote(of_other_classes, "2.0.0", "--into", trained)[0] == 0
    assert [listing.version_of(m) for m in listing.releases(root)] == ["1.0.0", "2.0.0"]


def test_a_run_in_which_nothing_qualifies(trained, promote, tmp_path):
    strict = tmp_path / "strict.yaml"
    strict.write_text("require: [{metric: accuracy, min: 0.9}]\n")
    message = refused(promote(trained, "1.0.0", "--rules", strict))
    assert "Nothing qualifies" in message
    assert message.endswith(f"To see why: peakpoint select {trained} --rules {strict}")
    assert promote(best(trained), "1.0.0", "--rules", strict)[0] == 0  # a file is taken at its word


def test_the_champion_to_beat_is_that_of_where_the_release_will_lie(trained, promote, tmp_path):
    against = tmp_path / "against.yaml"
    against.write_text("require: [{metric: loss, vs: champion, max_delta: -1}]\n")
    assert promote(trained, "1.0.0", "--rules", against)[0] == 0  # there is no champion yet
    promote(trained, "1.0.0", "--into", tmp_path / "prod", "--alias", "champion")
    message = refused(promote(trained, "1.0.1", "--into", tmp_path / "prod", "--rules", against))
    assert "Nothing qualifies" in message


@pytest.mark.parametrize("flip", [True, False])
def test_a_damaged_file(flip, trained, promote):
    damage(best(trained), flip=flip)
    message = refused(promote(best(trained), "1.0.0"))
    assert ("does not match the digest" if flip else "bytes and its manifest says") in message
    assert not (trained / "checkpoints" / "production").exists()


@pytest.mark.parametrize("recorded", [0.9, math.nan])
def test_a_metric_that_is_not_what_was_recorded(recorded, trained, promote):
    path = changed(trained, metrics={"accuracy": recorded})
    message = refused(promote(path, "1.0.0"))
    assert message == (
        f"accuracy is 0.2857, measured again on the 14 images of val, and {recorded:.4f} was recorded; "
        "tolerance=0.002 does not allow that, so nothing is released."
    )
    assert not (trained / "checkpoints" / "production").exists()
    if recorded == recorded:
        assert promote(path, "1.0.0", "--set", "tolerance=0.7")[0] == 0


def test_weights_that_do_not_measure_what_was_recorded(trained, promote):
    message = refused(promote(changed(trained, weight=1e4), "1.0.0"))
    assert "measured again on the 14 images of val" in message


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value, trained, promote):
    message = refused(promote(changed(trained, weight=value), "1.0.0"))
    assert "holds NaN or infinite values" in message
    assert not (trained / "checkpoints" / "production").exists()


def test_weights_beyond_float16(trained, promote):
    path = changed(trained, weight=1e6)
    assert "holds values beyond the range of float16" in refused(
        promote(path, "1.0.0", "--set", "dtype=float16")
    )


def test_data_that_is_not_what_it_was(tmp_path, promote):
    numbers = np.random.default_rng(0)
    data = tmp_path / "data"
    data.mkdir()
    labels = {"train": numbers.integers(0, 4, 64), "test": numbers.integers(0, 4, 8)}
    images = {k: numbers.integers(0, 256, (len(v), 12, 12, 3), dtype=np.uint8) for k, v in labels.items()}
    for split in labels:
        np.savez(data / f"{split}.npz", images=images[split], labels=labels[split])
    tiny = [o for o in TINY if not o.startswith("data")]
    where = ("data=npz", f"data.root={data}", "data.val_fraction=0.2")
    done = run_main(*tiny, *where, "epochs=1", "test=false", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    moved = data.rename(tmp_path / "moved")
    assert str(data) in refused(promote(tmp_path / "run", "1.0.0"))
    assert promote(tmp_path / "run", "1.0.0", "--data-root", moved)[0] == 0
    labels["train"][3] = (labels["train"][3] + 1) % 4
    np.savez(moved / "train.npz", images=images["train"], labels=labels["train"])
    message = refused(promote(tmp_path / "run", "1.0.1", "--data-root", moved))
    assert "is not the data that the run was trained with" in message


def test_a_folder_that_cannot_be_written_to(trained, promote, tmp_path):
    before = tree(tmp_path)
    message = refused(promote(trained, "1.0.0", "--into", trained / "run.json" / "prod"))
    assert "run.json is a file: name a folder." in message
    with files_no_larger_than(20_000):
        message = refused(promote(trained, "1.0.0"))
    assert "could not be written" in message
    left = {name: size for name, size in tree(tmp_path).items() if name not in before}
    assert left == {}
    assert promote(trained, "1.0.0")[0] == 0  # the version is free still


def test_an_interrupt_is_no_traceback(trained):
    production = trained / "checkpoints" / "production"
    production.mkdir()
    with briefly(production):  # as while a release is written
        started = subprocess.Popen(
            [sys.executable, "-m", "peakpoint", "verify", str(trained)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        waits = re.compile(rf"->.* {started.pid} ")
        while not waits.search(Path("/proc/locks").read_text()):
            time.sleep(0.01)
        started.send_signal(signal.SIGINT)
        out, err = started.communicate(timeout=120)
    assert (started.returncode, out, err) == (130, b"", b"")


# --- Signatures.


def test_a_signed_release_and_a_manifest_that_was_tampered_with(trained, promote, tmp_path, cli_main):
    key = make_key(tmp_path / "key")
    allowed = allow(tmp_path / "allowed", ("ada@lab", key))
    code, out, err = promote(trained, "1.0.0", "--set", f"sign={key}")
    assert (code, err) == (0, "")
    mark = trained / "checkpoints" / "production" / "lenet5_v1.0.0.json"
    assert f"wrote  {mark}.sig" in out
    code, out, _ = cli_main("verify", trained, "--allowed-signers", allowed)
    assert code == 0
    assert f"signed by ada@lab: {mark.with_suffix('.pt')}" in out
    strangers = allow(tmp_path / "strangers", ("eve@lab", make_key(tmp_path / "eve")))
    code, out, _ = cli_main("verify", mark, "--allowed-signers", strangers)
    assert (code, out.count("bad: ")) == (1, 1)
    # Whoever can write the files can also seal a manifest anew: only the signature tells.
    found = json.loads(mark.read_text())
    found.pop("check")
    found["metrics"]["accuracy"] = 0.99
    from peakpoint.checkpointing.storage.manifest import sealed

    mark.write_text(sealed(json.dumps(found, indent=2)))
    assert cli_main("verify", mark)[0] == 0
    code, out, _ = cli_main("verify", mark, "--allowed-signers", allowed)
    assert code == 1
    assert "was changed after it was signed" in out


def test_a_signature_that_fails_after_the_release_names_it(trained, promote, tmp_path, monkeypatch):
    key = make_key(tmp_path / "key")
    real, folder = shutil.which("ssh-keygen"), tmp_path / "bin"
    folder.mkdir()
    script = f'#!/bin/sh\ntest -e {folder}/used && exit 1\ntouch {folder}/used\nexec {real} "$@"\n'
    (folder / "ssh-keygen").write_text(script)  # signs once, which is the trial before anything is written
    (folder / "ssh-keygen").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    message = refused(promote(trained, "1.0.0", "--set", f"sign={key}"))
    file = trained / "checkpoints" / "production" / "lenet5_v1.0.0.pt"
    assert message.startswith(f"1.0.0 is released as {file}, but it is not signed: ")
    load_model(file)
    monkeypatch.undo()
    by_hand = shlex.split(message.split("To sign it: ")[1])
    subprocess.run(by_hand, check=True, capture_output=True)
    assert signing.signer(file.with_suffix(".json"), allow(tmp_path / "allowed", ("ada", key))) == "ada"


def test_a_release_without_a_signature(trained, promote, tmp_path, cli_main):
    allowed = allow(tmp_path / "allowed", ("ada@lab", make_key(tmp_path / "key")))
    assert cli_main("verify", trained, "--allowed-signers", allowed)[0] == 0  # checkpoints are not signed
    promote(trained, "1.0.0")
    code, out, _ = cli_main("verify", trained, "--allowed-signers", allowed, "--json")
    bad = [v for v in json.loads(out) if v["problem"]]
    assert (code, [v["file"] for v in bad]) == (1, ["production/lenet5_v1.0.0.pt"])
    assert "is not signed" in bad[0]["problem"]
    assert "does not exist: name a file of allowed signers" in refused(
        cli_main("verify", trained, "--allowed-signers", tmp_path / "nothing")
    )


def test_the_manifest_of_a_safetensors_release_by_its_name(trained, promote, cli_main):
    promote(trained, "1.0.0", "--set", "format=safetensors")
    mark = trained / "checkpoints" / "production" / "lenet5_v1.0.0.json"
    code, out, _ = cli_main("verify", mark)
    assert (code, out[:16]) == (0, "1 checked, 0 bad")


# --- Records that are not whole.


def test_checkpoints_without_the_record_of_their_run(trained, promote, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "copied", symlinks=True)
    assert promote(tmp_path / "copied", "1.0.0")[0] == 0
    found = card_of(tmp_path / "copied", "1.0.0")
    assert found["training"]["optimizer"]["name"] == "adamwprune"  # the checkpoint itself says so
    assert (found["training"]["peaks"], found["training"]["hours"]) == ([], None)


def test_checkpoints_beside_the_record_of_another_run_are_not_released(trained, promote):
    record = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(json.dumps(record | {"run": "another"}))
    print(refused(promote(trained, "1.0.0")))
    assert not list((trained / "checkpoints" / "production").glob("*"))


def test_a_broken_record_is_reported(trained, promote):
    (trained / "run.json").write_text("{")
    assert f"{trained / 'run.json'} is not JSON" in refused(promote(trained, "1.0.0"))
