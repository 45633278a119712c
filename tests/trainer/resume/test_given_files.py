"""Files that are no checkpoints to resume from: each is named for what it is, with what to type instead."""

import shutil

import pytest

from peakpoint.checkpointing.storage import listing
from tests.conftest import TINY, complete_run
from tests.states import newest


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with a release and something in quarantine; not to be changed."""
    run = tmp_path_factory.mktemp("named") / "run"
    complete_run(run, *TINY, "epochs=1", "test=false", "checkpoint.interval=1")
    root = run / "checkpoints"
    (root / "production").mkdir()
    for end in (".pt", ".json"):
        shutil.copy((root / newest(run).file).with_suffix(end), root / "production" / f"lenet5_v1.0.0{end}")
    first = listing.manifests(root)[0].file
    shutil.copy(root / first, root / "training" / "copy.pt")
    shutil.copy(root / first, root / "training" / "torn.pt")
    (root / "training" / "torn.json").write_text("{")
    (root / "quarantine").mkdir()
    shutil.copy(root / first, root / "quarantine" / "ab12_training_x.pt")
    (run / "latest").symlink_to(root / "production" / "lenet5_v1.0.0.pt")
    return run


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("checkpoints/production/lenet5_v1.0.0.pt", "is of a release, which holds weights alone"),
        ("checkpoints/production/lenet5_v1.0.0.json", "is of a release, which holds weights alone"),
        ("latest", "is of a release, which holds weights alone"),
        ("checkpoints/quarantine/ab12_training_x.pt", "was set aside as damaged: resume="),
        ("checkpoints/training/copy.pt", "has no manifest beside it"),
        ("checkpoints/training/torn.pt", "torn.pt cannot be verified: "),
        ("run.json", "is not a checkpoint: resume="),
        ("metrics.jsonl", "is not a checkpoint: resume="),
        (".hydra/config.yaml", "is not a checkpoint: resume="),
    ],
)
def test_what_a_file_is_and_what_to_type_instead(train, run, file, sentence):
    done = train(f"resume={run / file}", "epochs=2", "hydra.run.dir=fork")
    assert done.code == 1
    assert sentence in done.err
    assert f"resume={run} goes on from its newest checkpoint" in done.err
    assert done.err.count("\n") == 1


def test_a_manifest_says_which_file_to_name(train, run):
    mark = (run / "checkpoints" / newest(run).file).with_suffix(".json")
    done = train(f"resume={mark}", "epochs=2", "hydra.run.dir=fork")
    assert f"is a manifest: name the checkpoint beside it, {mark.stem}.pt." in done.err


@pytest.mark.parametrize("folder", ["checkpoints", "checkpoints/training", ".hydra"])
def test_a_directory_inside_a_run_says_which_run(train, run, folder):
    done = train(f"resume={run / folder}", "epochs=2")
    assert done.code == 1
    assert f"but lies in one: resume={run}." in done.err


def test_a_link_and_a_milestone_of_a_fork_are_resumed_from(train, run, tmp_path):
    (tmp_path / "link.pt").symlink_to(run / "checkpoints" / newest(run).file)
    assert train("resume=link.pt", "epochs=2", "hydra.run.dir=fork").code == 0
    fork = tmp_path / "fork"
    best = next(m for m in listing.manifests(fork / "checkpoints") if m.tier == "milestone")
    done = train(f"resume={fork / 'checkpoints' / best.file}", "epochs=3", "hydra.run.dir=second")
    assert done.code == 0, done.err
