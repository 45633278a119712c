"""nonfinite=skip: steps that are left out cost neither the target sparsity nor the best checkpoint at it."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peakpoint.checkpointing.policies.sparsity import tag
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.dispatch import main
from peakpoint.optimizers.parameters import prunable_weights
from tests.conftest import TINY, rows, status
from tests.states import differences
from tests.trainer.parts import fit, interrupted, parts

STEPS = 16
BASE = ("nonfinite=skip", "epochs=2", "pruning.end_fraction=1.0", "checkpoint/policy=[sparsity]")


def poisoned(made, bad):
    """The same batches; those of the steps `bad` hold an image that is not a number."""
    batches, per_epoch = made.data.train_batches, made.data.steps_per_epoch

    def train_batches(epoch, start=0):
        for step, (images, labels) in enumerate(batches(epoch, start), (epoch - 1) * per_epoch + start + 1):
            yield (images * math.nan if step in bad else images), labels

    made.data.train_batches = train_batches
    return made


def pruned(made):
    weights = prunable_weights(made.state.model).values()
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


@settings(max_examples=10, deadline=None, derandomize=True)
@example(bad={STEPS}, frequency=1, target=0.7, criterion="state", optimizer="adamwprune")
@example(bad={1}, frequency=1, target=0.6, criterion="state", optimizer="adamw")
@given(
    bad=st.sets(st.integers(1, STEPS), min_size=1, max_size=STEPS // 2),
    frequency=st.integers(1, STEPS + 4),
    target=st.floats(0.05, 0.95).map(lambda x: round(x, 3)),
    criterion=st.sampled_from(["state", "magnitude"]),
    optimizer=st.sampled_from(["adamwprune", "adam", "adamwspam"]),
)
def test_the_target_is_reached_exactly_whatever_steps_are_skipped(
    bad, frequency, target, criterion, optimizer
):
    options = (f"optimizer={optimizer}", f"pruning={criterion}", f"pruning.target={target}")
    made = poisoned(parts(*BASE, *options, f"pruning.frequency={frequency}"), bad)
    with tempfile.TemporaryDirectory() as folder:
        fit(made, Path(folder))
        (best,) = [m for m in listing.manifests(Path(folder)) if tag("accuracy", target) in m.tags]
    gone, total = pruned(made)
    assert gone == math.ceil(target * total - 1e-9)
    assert (best.global_step, best.sparsity) == (STEPS, gone / total)
    assert made.state.optimizer.state_dict()["pruning"]["step"] == STEPS


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "one_cycle", "constant"])
def test_the_learning_rate_goes_by_the_steps_of_the_run_also_those_that_are_skipped(
    tmp_path, schedule, recwarn
):
    options = (*BASE, f"scheduler={schedule}", "scheduler.warmup_epochs=0.5")

    def rates(bad):
        made, found = poisoned(parts(*options), bad), {}
        group = made.state.optimizer.param_groups[0]
        at = {step: (lambda step=step: found.update({step: group["lr"]})) for step in range(1, STEPS + 1)}
        fit(made, tmp_path / str(len(bad)), at=at)
        return found

    whole = rates(set())
    assert len(whole) == STEPS
    assert rates({1, 2, 9, STEPS}) == whole
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_a_checkpoint_whose_schedule_left_skipped_steps_out_goes_on_at_the_step_of_the_run(tmp_path):
    saved = interrupted(parts(*BASE), tmp_path, 9)
    saved["scheduler_state_dict"]["last_epoch"] = 7
    made = parts(*BASE)
    made.state.restore(saved)
    assert made.state.scheduler.last_epoch == 9


@pytest.mark.parametrize("stop", [4, 5, 6])
def test_resumed_beside_a_skipped_step_the_run_is_the_same_bit_for_bit(tmp_path, stop):
    options, bad = (*BASE, "pruning.frequency=5"), {5, 12}
    whole = poisoned(parts(*options), bad)
    fit(whole, tmp_path / "whole")
    saved = interrupted(poisoned(parts(*options), bad), tmp_path / "cut", stop)
    resumed = poisoned(parts(*options), bad)
    resumed.state.restore(saved)
    fit(resumed, tmp_path / "resumed")
    first, second = (serialize.snapshot(made.state.gather()) for made in (whole, resumed))
    assert differences(first, second) == []


def test_a_run_counts_skipped_steps_and_keeps_and_tests_its_best_at_the_target(train, tmp_path, capsys):
    base = [o for o in TINY if not o.startswith("model")]
    options = ("plugins=[tests.trainer.outputs]", "model=outputs", "model.bad=[5,24]", "nonfinite=skip")
    done = train(*base, *options, "pruning.end_fraction=1.0", "hydra.run.dir=run").succeeded()
    run = tmp_path / "run"
    assert len([r for r in rows(run, "test") if r["which"] == "selected"]) == 1
    (best,) = (run / "checkpoints" / "milestone").glob("best_accuracy_at_sparsity_0.70_*.pt")
    weights = serialize.load(best)["model_state_dict"]["layers.1.weight"]
    assert int((weights == 0).sum()) == math.ceil(0.7 * weights.numel())
    assert "all epochs are done; 2 of 24 steps were skipped, as they were not finite" in done.out
    assert "Skipped, as they were not finite: 2 of 24 steps." in done.out
    assert status(run)["skipped"] == rows(run, "train")[-1]["skipped"] == 2
    assert main(["report", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped_steps"] == 2
