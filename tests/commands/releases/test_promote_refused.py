"""promote: what must not be released; nothing is written then."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.store import Store
from tests.checkpoint_fixtures import patterns
from tests.checkpointing.checkpoint_cases import damage, files_no_larger_than
from tests.commands.releases.promote_cases import TEXTS, best, refused, tree
from tests.conftest import TINY, complete_run


@pytest.fixture(scope="session")
def of_other_classes(tmp_path_factory):
    """Return a run of another network: it has three classes."""
    run = tmp_path_factory.mktemp("other") / "run"
    return complete_run(run, *TINY, "data.num_classes=3", "max_steps=8")


def changed(run: Path, *, metrics=None, weight=None) -> Path:
    """Return a checkpoint as the store writes it, of the best state with other metrics or another weight."""
    target = Store(run / "checkpoints", "another")
    [source] = [m for m in listing.manifests(target.root) if target.path(m) == best(run)]
    state = serialize.load(best(run))
    if weight is not None:
        state["model_state_dict"]["conv1.bias"][0] = weight  # biases are not pruned
    role = replace(source, file="milestone/changed.pt", run="another", sequence=0)
    role = role if metrics is None else replace(role, metrics={**source.metrics, **metrics})
    return target.path(target.save([role], lambda file: serialize.dump(state, file))[0])


def test_a_card_that_says_too_little(trained, cli_main, texts):
    before = tree(trained)
    texts.write_text(TEXTS.replace("license: apache-2.0", "").replace("Tests.", "TODO"))
    message = refused(cli_main("promote", trained, "--version", "1.0.0", "--card", texts))
    assert message == (
        f"The model card lacks intended_use and license: write them in {texts} or with --set card.NAME=TEXT."
    )
    message = refused(cli_main("promote", trained, "--version", "1.0.0"))
    assert "lacks description, intended_use, limitations, ethical_considerations and license" in message
    assert (
        "write them in a file of your own (--card FILE), in conf/release/card.yaml or with --set" in message
    )
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
        f"Measured again on the 14 images of val, accuracy was recorded as {recorded}, and is 0.285714: "
        "tolerance=0.002 does not allow that, so nothing is released."
    )
    assert not (trained / "checkpoints" / "production").exists()
    if recorded == recorded:
        assert promote(path, "1.0.0", "--set", "tolerance=0.7")[0] == 0


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


def test_data_that_is_not_what_it_was(measured_run, measured_copy, promote, tmp_path):
    there = shutil.copytree(measured_run.parent / "data", tmp_path / "there")
    assert promote(measured_copy, "1.0.0", "--data-root", there)[0] == 0
    patterns(there / "train.npz", 240, seed=9)
    message = refused(promote(measured_copy, "1.0.1", "--data-root", there))
    assert "is not the data that the run was trained with" in message


def test_an_interrupt_is_no_traceback(trained, promote, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("peakpoint.commands.releases.settings.load", interrupted)
    assert promote(trained, "1.0.0") == (130, "", "")


def test_a_folder_that_cannot_be_written_to(trained, promote, tmp_path):
    before = tree(tmp_path)
    message = refused(promote(trained, "1.0.0", "--into", trained / "run.json" / "prod"))
    assert "run.json is a file: name a folder." in message
    inside = trained / "checkpoints" / "production"
    assert f"{inside} lies among the checkpoints under" in refused(
        promote(trained, "1.0.0", "--into", inside)
    )
    with files_no_larger_than(20_000):
        message = refused(promote(trained, "1.0.0"))
    assert "could not be written" in message
    left = {name: size for name, size in tree(tmp_path).items() if name not in before}
    assert left == {}
    assert promote(trained, "1.0.0")[0] == 0  # the version is free still
