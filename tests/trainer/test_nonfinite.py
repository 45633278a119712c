"""Losses and gradients that are not finite: what is skipped, what ends a run, and its message."""

import json
import math
import shlex

import pytest
import torch

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.events import EvalEnd, RunEnd
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.trainer.listeners.events import Logged
from peakpoint.trainer.nonfinite import last_good
from tests.conftest import TINY, rows, status
from tests.states import differences
from tests.trainer.parts import fit, parts
from tests.trainer.test_skipped_steps import poisoned

DENSE = (*TINY, "optimizer=sgd", "hydra.run.dir=run")
WEIGHTS_DIE = ("optimizer.lr=1e30", "checkpoint.interval_steps=1")
LOSSES_DIE = ("optimizer.lr=1e20", "checkpoint.interval_steps=1")


@pytest.mark.parametrize("more", [WEIGHTS_DIE, LOSSES_DIE], ids=["weights", "losses"])
def test_a_run_that_is_dead_ends_with_one_line_and_keeps_no_best(train, tmp_path, more):
    done = train(*DENSE, *more, "epochs=9", "nonfinite=skip")
    assert "try a lower optimizer.lr" in done.refusal()
    assert "No checkpoint of this run was evaluated with a good loss, so start again." in done.err
    run = tmp_path / "run"
    assert status(run)["state"] == "failed"
    assert len(rows(run, "eval")) <= 2
    assert [m for m in listing.manifests(run / "checkpoints") if m.tier == "milestone"] == []
    assert "is skipped: its loss is not finite" in done.out
    assert "this network cannot be a best" in done.out


def test_so_many_skipped_in_a_row_end_the_run(train, tmp_path):
    err = train(*DENSE, *LOSSES_DIE, "epochs=9", "nonfinite=skip", "max_skipped=5").refusal()
    assert "The last 5 steps were skipped, as their loss or gradients were not finite" in err
    assert rows(tmp_path / "run", "eval") == []
    assert train(*TINY, "max_skipped=0").err.startswith("error: max_skipped=0 is out of range")


@pytest.mark.parametrize("how", ["nonfinite=stop", "nonfinite=skip"])
def test_the_last_good_checkpoint_is_named_and_can_be_resumed_from(train, tmp_path, how):
    base = [*TINY, "optimizer=sgd", "optimizer.lr=0.01", "epochs=1", "checkpoint.interval_steps=1"]
    assert train(*base, "hydra.run.dir='a run, [x]'").code == 0
    done = train("resume='a run, [x]'", "epochs=9", "optimizer.lr=1e20", how).failed()
    run = tmp_path / "a run, [x]"
    root = run / "checkpoints"
    good = max((m for m in listing.manifests(root) if m.global_step == 8), key=lambda m: m.sequence)
    assert (
        f"The last good checkpoint is that of epoch 1, step 8 (loss {good.metrics['loss']:.4f})" in done.err
    )
    assert any(m.global_step > 8 for m in listing.manifests(root))
    words = shlex.split(done.err.split("to go on from it: ")[1])
    assert words[:2] == ["python", "train.py"]
    train(*words[2:], "optimizer.lr=0.01", "epochs=2").succeeded()
    assert json.loads((run / "run.json").read_text())["attempts"][-1]["resumed_from"] == str(root / good.file)
    assert rows(run, "eval")[-1]["step"] == 16


def test_weights_that_blew_up_are_not_called_good_though_their_loss_is_finite(train, tmp_path):
    base = [*TINY, "optimizer=adamw", "hydra.run.dir=run", "checkpoint.interval=1"]
    assert train(*base, "epochs=1").code == 0
    assert train("resume=run", "epochs=2", "optimizer.lr=1e4").code == 0
    first, second = (row["metrics"]["loss"] for row in rows(tmp_path / "run", "eval"))
    assert first < 3 < 1e6 < second < math.inf
    err = train("resume=run", "epochs=3", "optimizer.lr=1e30").refusal()
    assert f"The last good checkpoint is that of epoch 1, step 8 (loss {first:.4f})" in err


def test_a_damaged_checkpoint_is_not_called_good(train, tmp_path):
    assert train(*DENSE, "optimizer.lr=0.01", "epochs=1").code == 0
    root = tmp_path / "run" / "checkpoints"
    kept = {m.file for m in listing.manifests(root)}
    files = {(root / file).stat().st_ino: root / file for file in kept}.values()
    done = train("resume=run", "epochs=2", "optimizer.lr=1e30", "log_every=1")
    assert "The last good checkpoint is that of epoch 1" in done.err
    for file in files:
        file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert last_good(root, listing.manifests(root)[0].run, 4) is None


def test_how_many_steps_were_skipped_is_counted(tmp_path):
    made = poisoned(parts("epochs=1", "nonfinite=skip", "log_every=1"), {3, 5})
    ran = fit(made, tmp_path / "a")
    assert ran.end == RunEnd(1, 8, "all epochs are done; 2 of 8 steps were skipped, as they were not finite")
    assert [e.skipped for e in ran.of(Logged)] == [0, 0, 1, 1, 2, 2, 2, 2]
    saved = serialize.load(tmp_path / "a" / "training" / "latest.pt")["progress"]
    assert (saved["skipped"], saved["skipped_in_a_row"]) == (2, 0)


def test_a_finite_loss_with_gradients_that_are_not_is_skipped_too(tmp_path):
    made = parts("epochs=1", "nonfinite=skip", "log_every=1", "optimizer=sgd")
    steps = iter(range(1, 100))
    first = next(made.state.model.parameters())
    first.register_hook(lambda g: g * math.inf if next(steps) == 4 else g)
    ran = fit(made, tmp_path)
    assert made.state.progress.skipped == 1
    assert [math.isnan(e.loss) for e in ran.of(Logged)].index(True) == 3
    assert serialize.nonfinite(made.state.model.state_dict()) is None


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_skipped_step_leaves_the_statistics_of_batch_normalisation(tmp_path, accumulation):
    options = (
        "epochs=1",
        "nonfinite=skip",
        "model=resnet20",
        "optimizer=adamw",
        f"grad_accumulation={accumulation}",
    )
    made = poisoned(parts(*options), {4})
    before, after = {}, {}

    def note(into):
        return lambda: into.update(serialize.snapshot(made.state.model.state_dict()))

    ran = fit(made, tmp_path, at={3: note(before), 4: note(after)})
    changed = {line.split(":")[0].split(".")[-1].strip("']") for line in differences(before, after)}
    assert changed <= {"num_batches_tracked"}
    assert serialize.nonfinite(made.state.model.state_dict()) is None
    assert math.isfinite(ran.of(EvalEnd)[0].metrics["loss"])


def test_the_count_in_a_row_holds_over_a_resume(tmp_path):
    made = poisoned(parts("epochs=1", "nonfinite=skip", "max_skipped=3", "max_steps=2"), {1, 2, 3})
    fit(made, tmp_path / "a")
    saved = serialize.load(tmp_path / "a" / "training" / "latest.pt")
    again = poisoned(parts("epochs=1", "nonfinite=skip", "max_skipped=3"), {1, 2, 3})
    again.state.restore(saved)
    with pytest.raises(UserError, match="The last 3 steps were skipped"):
        fit(again, tmp_path / "b")


def test_an_evaluation_whose_loss_is_infinite_makes_no_best_of_an_accuracy(tmp_path):
    made = parts("epochs=2", "checkpoint/policy=[best,top_k,sparsity,early_stopping]", "optimizer=adamw")
    made.loop.evaluate = lambda _: {
        "loss": math.inf, "accuracy": 0.99, "top5_accuracy": 1.0, "f1_score": 0.99
    }  # fmt: skip
    ran = fit(made, tmp_path)
    assert isinstance(ran.end, RunEnd)
    assert [m for m in listing.manifests(tmp_path) if m.tier == "milestone"] == []


def test_weights_that_are_not_finite_end_a_run_at_its_evaluation(tmp_path):
    made = parts("epochs=3", "nonfinite=skip", "optimizer=sgd", "checkpoint/policy=[best]")

    def kill():
        with torch.no_grad():
            next(made.state.model.parameters()).fill_(math.nan)

    with pytest.raises(UserError, match=r"The network has diverged: conv1.weight holds NaN .* at step 8"):
        fit(made, tmp_path, at={7: kill})


def test_running_statistics_that_are_infinite_are_nobodys_best_though_their_loss_is_finite(train, tmp_path):
    mine = [o for o in DENSE if not o.startswith("model")]
    err = train(*mine, "plugins=[tests.trainer.outputs]", "model=outputs", "model.how=infinite").refusal()
    assert "error: The network has diverged: norm.running_var holds NaN or infinite values at step 8" in err
    assert "No checkpoint of this run was evaluated with a good loss" in err
    assert rows(tmp_path / "run", "eval") == []
    assert list((tmp_path / "run").rglob("*.pt")) == []
