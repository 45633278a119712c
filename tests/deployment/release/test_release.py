"""Releases of a run that pruned: what is written, in which form, and what a later one must say."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from peakpoint import CheckpointError, load_checkpoint, load_model
from peakpoint.base.digests import SHA256, digest_of
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import journal, listing, store
from peakpoint.checkpointing.storage.manifest import read_manifest
from peakpoint.deployment.inference import golden, network, weights
from peakpoint.deployment.release import release
from peakpoint.deployment.release.release import Form
from tests.checkpointing.publish_cases import (
    DESCRIPTION,
    PLAIN,
    SAFE,
    contents,
    files,
    journaled,
    sound,
)


@pytest.fixture
def root(pruned_run, tmp_path):
    """Return a copy of the checkpoints of a pruned run."""
    shutil.copytree(pruned_run / "checkpoints", tmp_path / "checkpoints", symlinks=True)
    return tmp_path / "checkpoints"


def best(root):
    """Return the checkpoint of the run that would be released."""
    return network.best(root)


def of(root, version="1.0.0", form=PLAIN, **more):
    made = release.of(root, best(root), version=version, form=form, reason="the best so far")
    return replace(made, **more)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def pointers(root):
    return {p.name: str(p.readlink()) for p in (root / "production").iterdir() if p.is_symlink()}


class TestFiles:
    def test_every_file_has_its_name_and_its_digest(self, root):
        manifest = release.write(root, of(root, card={"license": "mit"}, card_text="# A card\n"))
        assert manifest.file == "production/lenet5_v1.0.0.pt"
        assert [p.relative_to(root).as_posix() for p in files(root, "1.0.0")] == [
            "metadata/golden/v1.0.0.safetensors",
            "metadata/model_cards/v1.0.0.json",
            "metadata/model_cards/v1.0.0.md",
            "production/lenet5_v1.0.0.config.json",
            "production/lenet5_v1.0.0.pt",
            "production/lenet5_v1.0.0.json",
        ]
        beside = [p for p in files(root, "1.0.0") if p.suffix != ".pt"][:-1]
        assert manifest.companions == {p.relative_to(root).as_posix(): digest_of(p, SHA256) for p in beside}
        assert (root / "metadata/model_cards/v1.0.0.md").read_text() == "# A card\n"
        assert json.loads((root / "metadata/model_cards/v1.0.0.json").read_text()) == {"license": "mit"}
        assert pointers(root) == {"latest.pt": "lenet5_v1.0.0.pt"}

    def test_manifest_and_journal_say_where_it_comes_from(self, root):
        source = best(root)
        written = release.write(root, of(root))
        manifest = read_manifest(root / "production/lenet5_v1.0.0.json")
        assert (manifest.file, manifest.digest, manifest.bytes) == (
            written.file,
            written.digest,
            (root / written.file).stat().st_size,
        )
        assert manifest.tags == ("v1.0.0",)
        facts = ("metrics", "sparsity", "epoch", "global_step", "git_commit", "run")
        assert [getattr(manifest, f) for f in facts] == [getattr(source, f) for f in facts]
        metadata = dict(manifest.metadata)
        saved = serialize.load(root / source.file)
        assert metadata.pop("trained_with") == {
            "config": saved["config"],
            "fingerprint": saved["metadata"]["data"],
        }
        assert metadata == {
            "release": {"format": "pt", "dtype": "float32", "compress": False},
            "source": {"run": source.run, "file": source.file, "digest": source.digest},
            "reason": "the best so far",
        }
        config = json.loads((root / "production/lenet5_v1.0.0.config.json").read_text())
        assert config == manifest.config == network.describe(root / source.file).config()
        (fact,) = (f for f in journal.recorded(root) if f["event"] == "released")
        assert {key: fact[key] for key in fact.keys() - {"number", "time", "event"}} == {
            "version": "1.0.0",
            "source": metadata["source"],
            "reason": "the best so far",
            **{key: getattr(manifest, key) for key in ("file", "run", "git_commit", "created")},
        }

    def test_the_optimizer_and_all_else_of_the_training_are_gone(self, root):
        manifest = release.write(root, of(root))
        held = torch.load(root / manifest.file, weights_only=True)
        assert set(held) == {
            "version", "checkpoint_type", "git_commit", "epoch", "global_step", "metrics", "config",
            "model_state_dict", "model_version", "model_card",
        }  # fmt: skip
        values = sum(t.nbytes for t in held["model_state_dict"].values())
        assert manifest.bytes < values + 20_000

    def test_what_the_masks_prune_is_zero_whatever_the_checkpoint_holds(self, root):
        source = best(root)
        state = serialize.load(root / source.file)
        for weight in state["model_state_dict"].values():
            weight[weight == 0] = 0.5
        (revived,) = store.Store(root, source.run).save(
            [replace(source, file="milestone/revived.pt", sequence=0)],
            lambda file: serialize.dump(state, file),
        )
        made = release.of(root, revived, version="1.0.0", form=PLAIN, reason="a loop that forgot its masks")
        assert equal(made.weights, of(root).weights)
        release.write(root, made)
        assert equal(load_model(root).state_dict(), load_model(root / source.file).state_dict())

    @pytest.mark.parametrize("form", [PLAIN, SAFE], ids=lambda form: form.format)
    def test_its_files_alone_rebuild_the_network(self, root, form):
        manifest = release.write(root, of(root, form=form))
        file = root / manifest.file
        config = json.loads(file.with_suffix(".config.json").read_text())
        model = network.build(network.described(config))
        state = load_checkpoint(file, model)
        assert equal(model.state_dict(), weights.read(file))
        assert equal(model.state_dict(), load_model(root).state_dict())
        assert (state["metrics"], state["model_version"]) == (manifest.metrics, "1.0.0")
        if form is SAFE:
            with safe_open(file, "pt") as opened:
                facts = opened.metadata()
            assert (facts["version"], json.loads(facts["config"])) == ("1.0.0", config)

    def test_into_another_folder(self, root, tmp_path):
        made = release.write(tmp_path / "prod", of(root))
        assert sound(tmp_path / "prod", run=True) == ["1.0.0"]
        trained = load_model(root / best(root).file)
        assert equal(load_model(tmp_path / "prod").state_dict(), trained.state_dict())
        assert listing.releases(root) == []
        assert made.metadata["source"]["file"] == best(root).file


class TestForms:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "kept"])
    @pytest.mark.parametrize(("format", "compress"), [("pt", False), ("pt", True), ("safetensors", False)])
    def test_the_network_comes_back(self, root, format, dtype, compress):
        form = Form(format=format, dtype=dtype, compress=compress)
        manifest = release.write(root, of(root, form=form))
        release.verify(root, manifest, run=True)
        trained = load_model(root / best(root).file).state_dict()
        kind = weights.DTYPES.get(dtype, torch.float32)
        expected = {k: v.to(kind).to(v.dtype) if v.is_floating_point() else v for k, v in trained.items()}
        for path in (root, root / manifest.file):
            loaded = load_model(path)
            assert not loaded.training
            assert equal(loaded.state_dict(), expected)

    def test_half_is_half_and_compressed_is_small(self, root):
        def size(version, dtype, *, compress):
            form = Form(format="pt", dtype=dtype, compress=compress)
            return release.write(root, of(root, version, form)).bytes - 6000  # what is no weight

        dense = size("1.0.0", "float32", compress=False)
        assert size("1.1.0", "bfloat16", compress=False) < 0.6 * dense
        assert size("1.2.0", "float32", compress=True) < 0.5 * dense  # of 0.7 sparsity

    def test_the_pointer_has_the_suffix_of_the_highest_version(self, root):
        release.write(root, of(root, "1.0.0"))
        release.write(root, of(root, "1.2.0", SAFE))
        release.write(root, of(root, "1.1.0"))
        assert pointers(root) == {"latest.safetensors": "lenet5_v1.2.0.safetensors"}
        release.write(root, of(root, "1.10.0"))
        assert pointers(root) == {"latest.pt": "lenet5_v1.10.0.pt"}

    def test_a_release_can_be_released_again(self, root):
        first = release.write(root, of(root, "1.0.0-rc.1", SAFE))
        again = release.of(root, first, version="1.0.0", form=PLAIN, reason="the candidate was good")
        second = release.write(root, again)
        assert second.metadata["trained_with"] == first.metadata["trained_with"]
        assert second.metadata["source"]["file"] == first.file
        assert equal(load_model(root / first.file).state_dict(), load_model(root / second.file).state_dict())
        assert sound(root, run=True) == ["1.0.0-rc.1", "1.0.0"]


class TestImmutable:
    @pytest.mark.parametrize("name", ["lenet5", "another"])
    def test_a_version_is_used_once(self, root, name):
        release.write(root, of(root, card_text="first"))
        before = contents(root)
        with pytest.raises(CheckpointError, match=r"1\.0\.0 is released already: a release is never"):
            release.write(root, of(root, form=SAFE, name=name, card_text="second"))
        with pytest.raises(CheckpointError, match=r"1\.0\.0\+b is released already, as 1\.0\.0"):
            release.write(root, of(root, "1.0.0+b"))
        assert contents(root) == before
        assert journaled(root) == ["1.0.0"]

    def test_it_stays_taken_by_its_journal_or_by_its_manifest_though_that_is_damaged(self, root):
        release.write(root, of(root))
        mark = root / "production/lenet5_v1.0.0.json"
        mark.write_text("{")
        (root / "metadata/journal.jsonl").rename(root / "aside")
        with pytest.raises(CheckpointError, match="is released already"):
            release.write(root, of(root, name="another"))
        assert mark.read_text() == "{"
        (root / "aside").rename(root / "metadata/journal.jsonl")
        for path in root.rglob("*v1.0.0.*"):
            path.unlink()
        with pytest.raises(CheckpointError, match="is released already"):
            release.write(root, of(root))

    def test_a_line_that_is_missing_in_the_journal_is_added(self, root):
        first = release.write(root, of(root))
        (root / "metadata/journal.jsonl").unlink()
        release.write(root, of(root, "1.1.0"))
        assert journaled(root) == ["1.0.0", "1.1.0"]
        fact = journal.recorded(root)[0]
        assert (fact["file"], fact["created"]) == (first.file, first.created)

    def test_what_no_manifest_vouches_for_is_moved_aside_not_lost(self, root):
        production = root / "production"
        production.mkdir()
        (production / "lenet5_v1.0.0.pt").write_text("of a killed try, or of the user")
        (production / "lenet5_v1.0.0.safetensors").write_text("the same")
        cards = root / "metadata/model_cards"
        cards.mkdir(parents=True)
        (cards / "v1.0.0.md").write_text("notes")
        release.write(root, of(root, card_text="the card"))
        assert sound(root, run=True) == ["1.0.0"]
        assert not (production / "lenet5_v1.0.0.safetensors").exists()
        found = {p.name[7:]: p.read_text() for p in (root / "quarantine").iterdir()}
        reasons = [found.pop(name) for name in list(found) if name.endswith(".txt")]
        assert len(reasons) == 2  # two of them have one name but for the suffix
        assert all("it has no manifest" in reason for reason in reasons)
        assert found == {
            "production_lenet5_v1.0.0.pt": "of a killed try, or of the user",
            "production_lenet5_v1.0.0.safetensors": "the same",
            "metadata_model_cards_v1.0.0.md": "notes",
        }
        assert [f["event"] for f in journal.read(root)].count("quarantined") == 3

    def test_a_renamed_release_is_none(self, root):
        release.write(root, of(root))
        for path in (root / "production").glob("lenet5_v1.0.0.*"):
            shutil.copy(path, path.with_name(path.name.replace("v1.0.0", "v2.0.0")))
        assert [m.file for m in listing.releases(root)] == ["production/lenet5_v1.0.0.pt"]
        ((file, reason),) = listing.unreadable_releases(root)
        assert file == "production/lenet5_v2.0.0.pt"
        assert "is v1.0.0 by its manifest: it was renamed" in reason


class TestLibrary:
    def test_the_config_of_a_rebuildable_network_brings_golden_outputs(self, manager, root, pruned_run):
        model, description = load_model(pruned_run), network.describe(pruned_run)
        facts = {"metrics": {}, "model_card": {}}
        for version, config in (("1.0.0", description.config()), ("1.0.1", {"name": "lenet5"})):
            manager.save_production_checkpoint(model, version=version, config=config, **facts)
        first, second = listing.releases(root)
        assert (golden.has(first), golden.has(second)) == (True, False)
        release.verify(root, first, run=True)
        assert equal(load_model(root / first.file).state_dict(), model.state_dict())
        with pytest.raises(CheckpointError, match="released without golden outputs"):
            release.verify(root, second, run=True)
        assert equal(load_model(root / second.file).state_dict(), model.state_dict())  # saved by this process

    def test_a_config_of_another_network_brings_none(self, manager, root, t):
        path = manager.save_production_checkpoint(
            t.model, version="1.0.0", config=DESCRIPTION.config(), metrics={}, model_card={}
        )
        assert not golden.has(listing.releases(root)[0])
        assert path.name == "bayesian_transformer_v1.0.0.pt"
