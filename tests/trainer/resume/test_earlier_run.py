"""A whole run that an earlier version wrote verifies, loads and goes on; tests/data/README.md says which."""

import tarfile

import pytest
import torch

from peakpoint import load_model
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.dispatch import main
from peakpoint.deployment.inference import evaluate
from tests.conftest import ROOT, status
from tests.states import load_newest, newest


@pytest.fixture
def earlier(tmp_path):
    """The run, unpacked."""
    with tarfile.open(ROOT / "tests" / "data" / "run_of_682ba35.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / "run"
    assert {manifest.format for manifest in listing.manifests(run / "checkpoints")} == {1}
    return run


def test_it_verifies_and_goes_on_with_what_is_pruned(train, earlier, capsys):
    assert main(["verify", str(earlier)]) == 0
    assert "4 checked, 0 bad" in capsys.readouterr().out
    before = load_newest(earlier)
    done = train("resume=run", "epochs=3")
    assert done.code == 0, done.err
    assert (status(earlier)["epoch"], newest(earlier).global_step) == (3, 12)
    after = load_newest(earlier)
    assert after["config"]["pruning"]["criterion"] == "bitter0"  # typed as optimizer.variant
    assert after["config"]["logger"] == {"console": {}}  # typed as tensorboard=false
    weights = before["model_state_dict"], after["model_state_dict"]
    changed = [name for name in weights[0] if not torch.equal(weights[0][name], weights[1][name])]
    assert len(changed) == len(weights[0])
    for name in (name for name in changed if weights[0][name].dim() > 1):
        assert torch.equal(weights[0][name] == 0, weights[1][name] == 0), name
    assert main(["verify", str(earlier)]) == 0


def test_its_milestones_load_and_measure_as_they_did(earlier):
    root = earlier / "checkpoints"
    milestones = [m for m in listing.manifests(root) if m.tier == "milestone"]
    assert len(milestones) == 3
    for milestone in milestones:
        path = root / milestone.file
        found = evaluate.measure(load_model(path), evaluate.trained_with(root, milestone))
        assert found.metrics == pytest.approx(milestone.metrics, abs=1e-6)
        assert serialize.load(path)["optimizer_state_dict"]["pruning"]["masks"]
