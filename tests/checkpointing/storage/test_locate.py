"""What a path means when it names a role and not a file."""

import pytest

from peakpoint import CheckpointError
from peakpoint.checkpointing.storage import locate
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import saved


def test_a_role_and_a_value_mean_the_checkpoint_that_has_both(tmp_path):
    target = Store(tmp_path, "run")
    best = saved(target, "milestone/a.pt", 1.0, tags=("best_accuracy",), metrics={"accuracy": 0.92})
    saved(target, "milestone/b.pt", 2.0, tags=("top_k",), metrics={"accuracy": 0.92})
    saved(target, "milestone/c.pt", 3.0, tags=("best_accuracy",), metrics={"accuracy": 0.95})
    named = tmp_path / "milestone" / "best_accuracy_0.92.pt"
    root, found = locate.locate(named)
    assert (root, found.file, found.digest) == (tmp_path, best.file, best.digest)
    with pytest.raises(CheckpointError, match="does not exist"):
        locate.locate(named.with_stem("best_loss_0.92"))
