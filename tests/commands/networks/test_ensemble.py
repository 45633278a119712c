"""ensemble: its tables, its JSON, and the checkpoint that it saves."""

import json
import shutil

import pytest
import torch

from peakpoint import load_model
from peakpoint.base.lock import one_writer
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.manifest import AVERAGE
from tests.commands.releases.promote_cases import TEXTS
from tests.conftest import TINY, complete_run, run_main, status


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
    """A finished dense run with the checkpoints of top_k; not to be changed."""
    return complete_run(tmp_path_factory.mktemp("dense") / "run", *TINY, "pruning=none")


@pytest.fixture
def copied(dense_run, tmp_path):
    shutil.copytree(dense_run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_the_table_has_a_row_for_each_kind_of_average(dense_run, cli_main):
    before = sorted(dense_run.rglob("*"))
    out = cli_main("ensemble", dense_run, "--k", "9").output()
    val, test = out.split("\nval\n")[1].split("\ntest\n")
    for part in (val, test):
        for name in ("best single", "mean of probabilities", "mean of weights"):
            assert f"\n{name} " in part
    assert "on 14 val, 40 test images" in out
    assert "3 networks are averaged: there are no 9" in out
    assert "pruned differently" not in out
    assert sorted(dense_run.rglob("*")) == before


def test_the_json_has_every_figure(dense_run, cli_main):
    found = json.loads(cli_main("ensemble", dense_run, "--k", "2", "--json").succeeded().out)
    assert (found["metric"], found["role"], found["saved"]) == ("accuracy", "top_k", None)
    assert len(found["networks"]) == 2
    for split, count in (("val", 14), ("test", 40)):
        best, *others = found["results"][split].values()
        assert best["against_best"] is None
        for other in others:
            assert other["accuracy"]["count"] == count
            assert sum(other["against_best"][key] for key in ("both", "first", "second", "neither")) == count


def test_the_saved_mean_is_a_checkpoint_of_the_run_like_any_other(copied, cli_main, tmp_path):
    root = copied / "checkpoints"
    newest, files = locate.newest_sound(root), {p.name for p in root.rglob("*.pt")}
    result = json.loads(cli_main("ensemble", copied, "--save", "--json").output())
    file = root / result["saved"]
    _, saved = locate.locate(root / "milestone" / f"{AVERAGE}.pt")
    assert root / saved.file == file
    assert [source["file"] for source in saved.metadata["sources"]] == [
        each["file"] for each in result["networks"]
    ]
    assert [source["global_step"] for source in saved.metadata["sources"]] == [
        each["global_step"] for each in result["networks"]
    ]
    assert saved.reasons[0].startswith("the mean weights of 3 networks, of steps ")
    assert saved.metrics == pytest.approx(result["results"]["val"]["mean of weights"]["metrics"])
    means = [load_model(root / each["file"]).state_dict() for each in result["networks"]]
    for name, value in load_model(file).state_dict().items():
        torch.testing.assert_close(value, sum(mean[name] for mean in means) / 3)

    assert cli_main("verify", copied)[0] == 0
    assert file.name in cli_main("ls", copied)[1]
    assert "kept   an average of weights, which no training replaces" in cli_main("why", file)[1]
    assert file.name in cli_main("select", copied, "--dry-run")[1]
    texts = tmp_path / "texts.yaml"
    texts.write_text(TEXTS)
    cli_main("promote", file, "--version", "1.0.0", "--card", texts).output()
    release = load_model(copied).state_dict()
    assert all(torch.equal(release[name], value) for name, value in load_model(file).state_dict().items())
    card = json.loads((root / "metadata" / "model_cards" / "v1.0.0.json").read_text())
    assert "the checkpoint, at the end of the run" not in json.dumps(card)

    # A resume goes on from the newest state of the training, and its retention leaves the mean alone.
    assert locate.newest_sound(root).file == newest.file
    assert files <= {p.name for p in root.rglob("*.pt")}
    run_main(f"resume={copied}", "epochs=4").succeeded()
    assert status(copied)["step"] == 32
    assert file.exists()
    assert AVERAGE in {tag for m in listing.manifests(root) for tag in m.tags}


def test_nobody_resumes_from_a_mean(copied, cli_main):
    assert cli_main("ensemble", copied, "--save")[0] == 0
    err = run_main(f"resume={copied / 'checkpoints' / 'milestone' / 'average.pt'}").refusal()
    assert "has no progress: it cannot be resumed from" in err


def test_a_run_that_is_being_trained_is_left_alone(copied, cli_main):
    with one_writer(copied):
        code, out, err = cli_main("ensemble", copied, "--save")
        assert (code, out) == (1, "")
        assert len(err.splitlines()) == 1
        assert cli_main("ensemble", copied)[0] == 0
    assert not list(copied.rglob("average*"))
