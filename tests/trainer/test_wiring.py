"""What a run passes on from its configuration, and in which order it calls its parts."""

import time

import numpy as np
import pytest

from peakpoint.checkpointing.events import EvalEnd, StepEnd
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from tests.conftest import TINY, rows, status
from tests.trainer.parts import fit, parts


@pytest.mark.parametrize("name", ["cosine", "multistep", "one_cycle", "constant"])
def test_each_step_is_taken_at_the_rate_that_the_schedule_has_for_it(tmp_path, name):
    options = ("optimizer=sgd", "optimizer.lr=0.02", f"scheduler={name}", "scheduler.warmup_epochs=0.5")
    made = parts(*options)
    taken = []
    made.state.optimizer.register_step_pre_hook(
        lambda optimizer, *_: taken.append(optimizer.param_groups[0]["lr"])
    )
    fit(made, tmp_path)
    factor = made.state.scheduler.lr_lambdas[0]
    assert taken == [0.02 * factor(step) for step in range(24)]
    first = 0.02 / 4  # of the four steps of half an epoch
    assert taken[0] == pytest.approx(first * 0.04 if name == "one_cycle" else first)
    assert len(set(taken)) > 3


def test_training_and_evaluation_have_their_modes_in_every_epoch(tmp_path):
    made = parts()
    modes = []
    layer = next(m for m in made.state.model.modules() if not list(m.children()))
    layer.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    ran = fit(made, tmp_path)
    assert [len(ran.of(kind)) for kind in (StepEnd, EvalEnd)] == [24, 3]
    assert modes == [*[True] * 8, False] * 3


@pytest.mark.parametrize("changed", ["images", "labels"])
def test_a_run_is_not_resumed_on_other_data_of_the_same_name(train, tmp_path, changed):
    generator = np.random.default_rng(0)
    data = {"images": generator.integers(0, 255, (60, 12, 12, 3), np.uint8), "labels": np.arange(60) % 3}
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", **data)
    base = ["model=lenet5", "data=npz", "data.root=.", "batch_size=8", "logger=[console]", "report=false"]
    train(*base, "max_steps=2", "epochs=1", "threads=1", "hydra.run.dir=run").succeeded()
    data[changed] = data[changed][::-1].copy()
    np.savez(tmp_path / "train.npz", **data)
    before = status(tmp_path / "run")
    for more in ([], ["hydra.run.dir=fork"]):
        err = train("resume=run", "max_steps=4", *more).refusal()
        assert err.startswith("error: data.root holds other data than the run was started with")
    assert status(tmp_path / "run") == before


def test_when_busy_reaches_the_manager(train, tmp_path, monkeypatch):
    """The first save is slow until a later one was left out; without `skip` none ever is."""
    metrics, dump, calls = tmp_path / "run" / "metrics.jsonl", serialize.dump, []

    def slow(*arguments, **options):
        calls.append(1)
        end = time.monotonic() + 20
        while len(calls) == 1 and '"skipped save"' not in metrics.read_text() and time.monotonic() < end:
            time.sleep(0.01)
        dump(*arguments, **options)

    base = [*TINY, "epochs=1", "checkpoint/policy=[interval]", "checkpoint.interval_steps=1", "test=false"]
    assert train(*base, "hydra.run.dir=patient").code == 0
    assert rows(tmp_path / "patient", "skipped save") == []
    monkeypatch.setattr(serialize, "dump", slow)
    train(*base, "checkpoint.when_busy=skip", "hydra.run.dir=run").succeeded()
    assert rows(tmp_path / "run", "skipped save") != []


def test_what_a_run_goes_on_from_stays_though_newer_ones_push_it_out(train, tmp_path):
    base = [*TINY, "epochs=1", "checkpoint/policy=[interval]", "checkpoint.interval_steps=2", "test=false"]
    assert train(*base, "checkpoint.keep_last=3", "hydra.run.dir=run").code == 0
    root = tmp_path / "run" / "checkpoints"
    file = min(listing.manifests(root), key=lambda m: m.global_step).file
    train(f"resume={root / file}", "epochs=2", "checkpoint.keep_last=1").succeeded()
    assert {m.global_step for m in listing.manifests(root) if m.tier == "training"} == {4, 16}
    assert (root / file).exists()
