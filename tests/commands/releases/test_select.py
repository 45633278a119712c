"""select on the command line: every candidate, the rule that rejected it, and the exit code."""

import json
import math
from dataclasses import replace

import pytest

from peakpoint.checkpointing.storage import listing
from tests.conftest import TINY, complete_run


def best(run):
    """Return the file with the best accuracy, and that accuracy."""
    link = run / "checkpoints" / "milestone" / "best_accuracy.pt"
    manifest = next(
        m for m in listing.manifests(run / "checkpoints") if m.file.endswith(link.readlink().name)
    )
    return manifest.file, manifest.metrics["accuracy"]


def test_every_candidate_is_printed_with_what_rejected_it(cli_main, measured_run, monkeypatch):
    monkeypatch.chdir(measured_run.parent)
    out = cli_main("select", "run").output()
    file, accuracy = best(measured_run)
    assert f"chosen by default.yaml: run/checkpoints/{file}\n" in out
    assert f", accuracy {accuracy:.2%}, " in out.partition("measured again on 60 images of val: loss ")[2]
    assert "there is no champion yet: 1 rule against it skipped" in out
    early = "training/checkpoint_epoch_0002_step_00000022.pt"
    assert f"rejected  {early}: sparsity is 0.479981: it must be at least the target (0.6)\n" in out


def test_the_sparsity_is_measured_among_the_weights_that_the_run_could_prune(cli_main, tmp_path):
    run = complete_run(tmp_path / "run", *TINY, "pruning.exclude=[conv2]", "pruning.target=0.6")
    root = run / "checkpoints"
    assert listing.manifests(root)[-1].sparsity == pytest.approx(0.6, abs=1e-2)
    # A sparsity other than the recorded one would be refused.
    assert "sparsity 60." in cli_main("select", run).output()


def test_a_narrow_terminal_cuts_no_reason_off(on_a_terminal, measured_run):
    out = " ".join(on_a_terminal(50, "select", measured_run, "--rules", "best_practice").split())
    assert out.count(" rejected ") == 3
    assert out.count(": it must be above 20") == 3


def test_json_has_the_same_in_full(cli_main, measured_copy):
    root = measured_copy / "checkpoints"
    early = next(m for m in listing.manifests(root) if m.global_step == 22)
    claimed = replace(early, metrics={"accuracy": math.nan})
    (root / early.file).with_suffix(".json").write_text(claimed.to_json())
    found = json.loads(cli_main("select", measured_copy, "--json").succeeded().out)
    assert found["winner"] == str(root / best(measured_copy)[0])
    assert found["measured"]["samples"] == 60
    assert [c["rank"] for c in found["candidates"]] == [1, None, None]
    nan = next(c for c in found["candidates"] if c["global_step"] == 22)
    assert nan["facts"]["accuracy"] == "nan"
    assert "rank accuracy: accuracy is nan" in nan["rejected"]
    code, out, err = cli_main("select", measured_copy, "--json", "--rules", "best_practice")
    assert (code, json.loads(out)["winner"], json.loads(out)["measured"]) == (1, None, None)
    assert err.startswith("error: Nothing qualifies")


def test_a_tree_of_runs_names_each_file_from_their_common_folder(cli_main, measured_copy, measured_run):
    (measured_copy.parent / "other").symlink_to(measured_run)
    out = cli_main("select", measured_copy, measured_copy.parent / "other", "--dry-run").succeeded().out
    assert "run/checkpoints/training/checkpoint_epoch_0002" in out.replace("\n", "")
    assert "other/checkpoints/training" in out
    assert "not measured again: --dry-run" in out
