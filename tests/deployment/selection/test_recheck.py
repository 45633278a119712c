"""check on real releases: what is degraded, and when the one before is really taken back."""

import shutil

import numpy as np
import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases, store
from peakpoint.deployment.inference import evaluate, network
from peakpoint.deployment.selection import recheck
from peakpoint.deployment.selection.measure import Appraiser
from tests.checkpoint_fixtures import patterns
from tests.checkpointing.trained_releases import flip_a_byte, released
from tests.conftest import TINY, complete_run

EARLY, MIDDLE, FINAL = 22, 44, 66


def check(run, *, metric="accuracy", threshold=0.05, alias="champion", back=True, **where):
    """Check, and roll back if it is degraded."""
    appraiser = Appraiser(**where)
    found = recheck.check(run / "checkpoints", alias, metric, threshold, appraiser)
    return recheck.roll_back(found, alias, appraiser) if found.degraded and back else found


def champion(run):
    return aliases.current(run / "checkpoints").get("champion")


@pytest.fixture
def harder(tmp_path):
    """Return newer images with more noise than in training: every network is worse on them."""
    return patterns(tmp_path / "new" / "harder.npz", 200, seed=7, noise=0.6)


def test_what_is_as_recorded_is_sound(measured_copy):
    released(measured_copy, "1.0.0", FINAL)
    found = check(measured_copy, threshold=0)
    assert (found.version, found.degraded, found.back) == ("1.0.0", False, None)
    assert found.measured.metrics["accuracy"] == found.recorded
    assert (found.measured.samples, found.measured.split) == (60, "val")


def test_beyond_the_threshold_the_better_one_before_is_taken_back(measured_copy, harder):
    released(measured_copy, "1.0.0", FINAL)
    released(measured_copy, "1.1.0", EARLY)
    assert not check(measured_copy, other_data=harder, threshold=0.5).degraded
    assert champion(measured_copy) == "1.1.0"
    found = check(measured_copy, other_data=harder)
    assert (found.back, champion(measured_copy)) == ("1.0.0", "1.0.0")
    assert found.earlier.metrics["accuracy"] > found.measured.metrics["accuracy"]
    assert (found.earlier.samples, found.earlier.split) == (200, "harder.npz")
    change = list(aliases.changes(measured_copy / "checkpoints", "champion"))[-1]
    assert (change.how, change.before) == ("rolled back", "1.1.0")
    accuracy = found.measured.metrics["accuracy"]
    assert change.reason.startswith(f"check: 1.1.0: accuracy is {accuracy:.2%} on 200 images of harder.npz, ")


def test_one_before_that_is_no_better_is_not_taken_back(measured_copy, harder):
    released(measured_copy, "1.0.0", EARLY)
    released(measured_copy, "1.1.0", FINAL)
    found = check(measured_copy, other_data=harder)
    assert (found.degraded, found.back, champion(measured_copy)) == (True, None, "1.1.0")
    assert found.earlier.metrics["accuracy"] < found.measured.metrics["accuracy"]
    assert "no better" in found.notes[0]
    released(measured_copy, "1.2.0", FINAL)  # equal is no better, either
    assert check(measured_copy, other_data=harder).back is None
    assert champion(measured_copy) == "1.2.0"


def test_a_damaged_one_before_is_passed_over(measured_copy, harder):
    released(measured_copy, "1.0.0", FINAL)
    middle = released(measured_copy, "1.1.0", MIDDLE)
    released(measured_copy, "1.2.0", EARLY)
    flip_a_byte(measured_copy / "checkpoints" / middle.file)
    found = check(measured_copy, other_data=harder)
    assert found.back == champion(measured_copy) == "1.0.0"
    assert "its bytes changed" in found.notes[0]


def test_a_damaged_champion_goes_back_to_whatever_verifies(measured_copy):
    released(measured_copy, "1.0.0", EARLY)
    final = released(measured_copy, "1.1.0", FINAL)
    flip_a_byte(measured_copy / "checkpoints" / final.file)
    found = check(measured_copy, back=False)
    assert (found.degraded, found.measured, champion(measured_copy)) == (True, None, "1.1.0")
    assert "its bytes changed" in found.problem
    assert check(measured_copy).back == champion(measured_copy) == "1.0.0"


def test_without_another_release_nothing_is_changed(measured_copy, harder):
    root = measured_copy / "checkpoints"
    best = check(measured_copy, other_data=harder)  # no release at all: the best checkpoint
    assert (best.version, best.manifest.global_step, best.back) == (None, FINAL, None)
    assert best.degraded
    released(measured_copy, "1.0.0", EARLY, alias=None)
    highest = check(measured_copy, other_data=harder)
    assert (highest.version, highest.back) == ("1.0.0", None)
    released(measured_copy, "1.1.0", FINAL)
    only = check(measured_copy, other_data=harder)
    assert (only.version, only.back) == ("1.1.0", None)
    assert only.notes == ("champion named no earlier release",)
    assert [change.version for change in aliases.changes(root)] == ["1.1.0"]


def test_an_alias_that_was_taken_away_is_not_given_back(measured_copy, harder):
    released(measured_copy, "1.0.0", FINAL)
    released(measured_copy, "1.1.0", EARLY)
    aliases.assign(measured_copy / "checkpoints", "champion", None, "a test")
    found = check(measured_copy, other_data=harder)
    assert (found.version, found.degraded, found.back) == ("1.1.0", True, None)
    assert champion(measured_copy) is None


def test_one_that_may_have_seen_the_images_is_not_compared_on_them(measured_copy, measured_run, tmp_path):
    """Another seed splits the data elsewhere: the validation images were in the training of the other."""
    data = measured_run.parent / "data"
    settings = [s for s in TINY if not s.startswith(("data", "epochs", "checkpoint/", "pruning"))]
    settings += ["data=npz", f"data.root={data}", "epochs=1", "seed=5", "test=false", "pruning=none"]
    complete_run(tmp_path / "seed5", *settings, "optimizer=sgd")
    other = released(tmp_path / "seed5", "1.0.0", 13, alias=None)
    root = measured_copy / "checkpoints"
    for folder in ("production", "metadata"):
        shutil.copytree(tmp_path / "seed5" / "checkpoints" / folder, root / folder, dirs_exist_ok=True)
    store.verify(root, other)
    aliases.assign(root, "champion", "1.0.0", "a test")
    released(measured_copy, "2.0.0", EARLY)  # its inputs are normalised otherwise
    found = check(measured_copy, threshold=-1)  # so that whatever it measures is beyond
    assert (found.back, champion(measured_copy)) == (None, "2.0.0")
    assert "another split" in found.notes[0]


def test_a_champion_that_somebody_sets_meanwhile_stays(measured_copy, harder):
    released(measured_copy, "1.0.0", FINAL)
    released(measured_copy, "1.1.0", EARLY)
    root, appraiser = measured_copy / "checkpoints", Appraiser(other_data=harder)
    found = recheck.check(root, "champion", "accuracy", 0.05, appraiser)
    assert found.degraded
    measure = appraiser.measure

    def slow(*where):
        released(measured_copy, "1.2.0", MIDDLE)
        return measure(*where)

    appraiser.measure = slow
    with pytest.raises(CheckpointError, match="was set to another release meanwhile"):
        recheck.roll_back(found, "champion", appraiser)
    assert champion(measured_copy) == "1.2.0"


def test_what_cannot_be_asked(measured_copy, harder):
    root = measured_copy / "checkpoints"
    released(measured_copy, "1.0.0", FINAL)
    with pytest.raises(CheckpointError, match=r"has not recorded acuracy: did you mean accuracy\?"):
        check(measured_copy, metric="acuracy")
    with pytest.raises(CheckpointError, match="challenger_1 names no release"):
        check(measured_copy, alias="challenger_1")
    with pytest.raises(CheckpointError, match="is not an alias"):
        check(measured_copy, alias="king")
    for path in (root / "production").glob("*v1.0.0*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"champion is 1\.0\.0, which is not under"):
        check(measured_copy)


def test_other_data_is_measured_as_the_run_would(measured_run):
    """The test set of the run, given as if it were new: the same metrics as the trainer's own way."""
    root = measured_run / "checkpoints"
    manifest = network.best(root)
    facts, description = evaluate.trained_with(root, manifest), network.rebuilt(root, manifest)[1]
    known = evaluate.measure(network.load(root, manifest), facts, split="test")
    data = measured_run.parent / "data"
    for path in (data, data / "test.npz"):
        found = evaluate.measure_other(network.load(root, manifest), description, facts, path)
        assert found.samples == 80
        assert found.metrics == pytest.approx(known.metrics, rel=1e-5)


def test_other_data_that_does_not_fit(measured_run, whole_run, tmp_path):
    root = measured_run / "checkpoints"
    manifest = network.best(root)
    facts, description = evaluate.trained_with(root, manifest), network.rebuilt(root, manifest)[1]

    def measure(path, facts=facts):
        return evaluate.measure_other(network.load(root, manifest), description, facts, path)

    images, labels = np.zeros((6, 12, 12, 1), np.uint8), np.arange(6) % 3
    np.savez(tmp_path / "fewer.npz", images=images, labels=labels)
    assert measure(tmp_path / "fewer.npz").samples == 6
    np.savez(tmp_path / "larger.npz", images=np.zeros((6, 20, 16), np.uint8), labels=labels)
    assert measure(tmp_path / "larger.npz").samples == 6  # resized, as the network takes them
    np.savez(tmp_path / "more.npz", images=images, labels=np.arange(6))
    np.savez(tmp_path / "named.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "colour.npz", images=np.zeros((6, 12, 12, 3), np.uint8), labels=labels)
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    for name, line in {
        "more": r"classes 0, 1, 2, ... \(6\)",
        "named": "classes a, b, c",
        "colour": "images of 3 channels, and the network takes 1",
        "broken": "cannot be read as an .npz file",
        "gone": "is missing",
    }.items():
        with pytest.raises(CheckpointError, match=line):
            measure(tmp_path / f"{name}.npz")
    made = evaluate.trained_with(whole_run / "checkpoints", network.best(whole_run / "checkpoints"))
    with pytest.raises(CheckpointError, match="synthetic is not read from a folder"):
        measure(tmp_path, made)
