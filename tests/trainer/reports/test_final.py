"""What the test set is read with at the end: the final weights, and those that validation chose."""

import pytest

from tests.conftest import TINY, rows

LOSS = ("checkpoint.monitor.metric=loss", "checkpoint.monitor.mode=min")


@pytest.mark.parametrize(("pruning", "chosen"), [("pruning.target=0", 1), ("pruning.end_step=12", 2)])
def test_the_best_of_all_is_tested_and_of_a_pruned_network_the_best_at_the_target(
    train, tmp_path, pruning, chosen
):
    """The second epoch makes every network worse, and is the one that reaches the target."""
    done = train(*TINY, *LOSS, "epochs=2", "max_steps=8", pruning, "test=false", "hydra.run.dir=run")
    assert done.code == 0, done.err
    done = train("resume=run", "max_steps=null", "optimizer.lr=5", "test=true")
    assert done.code == 0, done.err
    first, second = (row["metrics"]["loss"] for row in rows(tmp_path / "run", "eval"))
    assert second > 1.5 * first
    tested = {row["which"]: row for row in rows(tmp_path / "run", "test")}
    assert (tested["final"]["epoch"], tested["selected"]["epoch"]) == (2, chosen)
    same = tested["final"]["metrics"] == tested["selected"]["metrics"]
    assert same == (chosen == 2)
    assert f"_epoch_{chosen:04d}" in tested["selected"]["file"]
