"""The loop: what it publishes and when, what a step is, and what ends it."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.events import EpochEnd, EvalEnd, Interrupted, RunEnd, Saved, StepEnd
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import locate
from peakpoint.trainer import loop
from peakpoint.trainer.listeners.events import Logged
from tests.conftest import TINY, rows
from tests.skips import NO_CUDA
from tests.states import differences, load_newest, newest
from tests.trainer.parts import fit, interrupted, parts
from tests.trainer.test_skipped_steps import poisoned

DENSE = ("optimizer=sgd", "model.dropout=0", "epochs=1")


def weights(made):
    return torch.cat([p.detach().flatten() for p in made.state.model.parameters()])


def test_events_come_in_the_order_of_the_docstring(tmp_path):
    ran = fit(parts("epochs=2", "checkpoint/policy=[interval]", "checkpoint.interval=1"), tmp_path)
    kinds = [type(e) for e in ran.heard if not isinstance(e, Logged | Saved)]
    assert kinds == [*[*[StepEnd] * 8, EvalEnd, EpochEnd] * 2, RunEnd]
    assert [e.file[-11:] for e in ran.of(Saved)] == ["00000008.pt", "00000016.pt"]
    moments = [
        (type(e).__name__, e.epoch, e.step) for e in ran.heard if isinstance(e, EvalEnd | EpochEnd | RunEnd)
    ]
    assert moments == [
        ("EvalEnd", 1, 8), ("EpochEnd", 1, 8), ("EvalEnd", 2, 16), ("EpochEnd", 2, 16), ("RunEnd", 2, 16),
    ]  # fmt: skip
    assert [e.step for e in ran.of(StepEnd)] == list(range(1, 17))
    assert [e.step for e in ran.of(Logged)] == [3, 6, 8, 9, 12, 15, 16]
    assert ran.end == RunEnd(2, 16, "all epochs are done")


def test_the_evaluation_is_what_was_measured(tmp_path):
    made = parts("epochs=1")
    ran = fit(made, tmp_path)
    (event,) = ran.of(EvalEnd)
    assert made.loop.evaluate(made.data.val_batches()) == event.metrics
    assert event.sparsity == pytest.approx(0.7, abs=0.01)
    assert event.mask_version > 0
    assert made.state.progress.evaluated_steps == {event.step}


def test_evaluating_changes_nothing(tmp_path):
    made = parts("epochs=1", "model=resnet20", "model.dropout=0.3")
    fit(made, tmp_path)
    before = serialize.snapshot(made.state.gather())
    made.loop.evaluate(made.data.val_batches())
    assert differences(before, serialize.snapshot(made.state.gather())) == []


@pytest.mark.parametrize("accumulation", [2, 4, 16])
def test_parts_of_a_batch_add_up_to_the_whole(tmp_path, accumulation):
    whole, cut = parts(*DENSE), parts(*DENSE, f"grad_accumulation={accumulation}")
    first, second = fit(whole, tmp_path / "a"), fit(cut, tmp_path / "b")
    assert len(second.of(StepEnd)) == 8
    assert cut.state.scheduler.last_epoch == 8
    torch.testing.assert_close(weights(cut), weights(whole), rtol=1e-4, atol=1e-6)
    losses = zip(first.of(Logged), second.of(Logged), strict=True)
    assert all(math.isclose(a.loss, b.loss, rel_tol=1e-4) for a, b in losses)


def test_the_loss_that_is_logged_is_the_mean_of_its_steps(tmp_path):
    each = [e.loss for e in fit(parts(*DENSE, "log_every=1"), tmp_path / "a").of(Logged)]
    mean = [e.loss for e in fit(parts(*DENSE, "log_every=5"), tmp_path / "b").of(Logged)]
    assert mean == pytest.approx([sum(each[:5]) / 5, sum(each[5:]) / 3])


def test_the_rate_that_is_logged_is_that_since_the_one_before(tmp_path, monkeypatch):
    """Each look at this clock is a second after the last."""
    seconds = itertools.count()
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    ran = fit(parts("epochs=2", "log_every=2"), tmp_path)
    assert [e.images_per_second for e in ran.of(Logged)] == [32.0] * 8


def test_label_smoothing_is_in_the_training_loss_alone(tmp_path):
    made = parts(*DENSE, "label_smoothing=0.2", "log_every=1")
    images, labels = next(iter(made.data.train_batches(1)))
    logs = log_softmax(made.state.model(images), 1)
    hard = -logs[torch.arange(16), labels].mean()
    expected = 0.8 * hard + 0.2 * -logs.mean()
    ran = fit(made, tmp_path)
    assert ran.of(Logged)[0].loss == pytest.approx(expected.item(), rel=1e-5)
    made.state.model.eval()
    images, labels = next(iter(made.data.val_batches()))
    with torch.no_grad():
        plain = cross_entropy(made.state.model(images), labels)
    assert ran.of(EvalEnd)[0].metrics["loss"] == pytest.approx(plain.item(), rel=1e-4)


def test_bf16_computes_in_bf16_and_keeps_float32(tmp_path):
    seen = set()
    made = parts(*DENSE, "precision=bf16", "log_every=1")
    layer = next(m for m in made.state.model.modules() if isinstance(m, torch.nn.Conv2d))
    layer.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
    half = fit(made, tmp_path / "a").of(Logged)
    full = fit(parts(*DENSE, "log_every=1"), tmp_path / "b").of(Logged)
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in made.state.model.parameters()} == {torch.float32}
    assert half[0].loss == pytest.approx(full[0].loss, rel=0.02)
    assert half[0].loss != full[0].loss


def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(tmp_path):
    made = poisoned(parts("epochs=1", "checkpoint.interval_steps=1"), {5})
    with pytest.raises(UserError, match=r"The loss is not finite at step 5: .*nonfinite=skip"):
        fit(made, tmp_path)
    assert weights(made).isfinite().all()
    last = locate.newest_verified(tmp_path).manifest
    assert last.global_step == 4
    saved = serialize.load(tmp_path / last.file)["model_state_dict"]
    assert differences(saved, serialize.snapshot(made.state.model.state_dict())) == []


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_loss_that_is_not_finite_is_skipped_with_nonfinite_skip(tmp_path, accumulation):
    options = ("epochs=1", "nonfinite=skip", "log_every=1", f"grad_accumulation={accumulation}")
    made = poisoned(parts(*options), {5})
    before, after = {}, {}

    def note(into):
        return lambda: into.update(serialize.snapshot(made.state.model.state_dict()))

    ran = fit(made, tmp_path, at={4: note(before), 5: note(after)})
    assert differences(before, after) == []  # neither momentum, nor decay, nor pruning
    assert made.state.scheduler.last_epoch == 8
    first = made.state.optimizer.param_groups[0]["params"][0]
    assert made.state.optimizer.state[first]["step"] == 7
    assert isinstance(ran.end, RunEnd)
    assert [math.isnan(e.loss) for e in ran.of(Logged)] == [False] * 4 + [True] + [False] * 3
    assert weights(made).isfinite().all()


@pytest.mark.parametrize(
    "options", [["data.image_size=4", "batch_size=1"], ["data.image_size=4", "grad_accumulation=16"], []]
)
def test_a_normalisation_over_a_single_value_is_one_line(options):
    made = parts("model=resnet20", *options)
    if not options:  # whatever the size of the batch
        pooled = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.InstanceNorm2d(64))
        made.state.model.layer3.append(pooled)
    with pytest.raises(UserError, match=r"^A normalisation layer has nothing to normalise over: Expected"):
        made.loop.fit(lambda *_: None)


@pytest.mark.parametrize("during", ["train", "val"])
def test_a_batch_that_does_not_fit_in_memory_is_one_line(tmp_path, during):
    made = parts(*DENSE)

    def too_large(*_):
        yield torch.empty(2**50), torch.zeros(1)  # torch itself raises, as for any tensor

    setattr(made.data, f"{during}_batches", too_large)
    with pytest.raises(UserError, match=r"^The network and a batch do not fit in memory: raise grad_acc"):
        fit(made, tmp_path)


def test_max_steps_ends_within_an_epoch_and_a_larger_one_goes_on(train, tmp_path):
    done = train(*TINY, "max_steps=5", "hydra.run.dir=run").succeeded()
    assert "max_steps=5 is reached" in done.out
    run = tmp_path / "run"
    assert [(r["epoch"], r["step"]) for r in rows(run, "eval")] == [(1, 5)]
    assert newest(run).global_step == 5
    again = train("resume=run")
    assert (again.code, "is finished at" in again.out) == (0, True)
    train("resume=run", "max_steps=12").succeeded()
    assert [(r["epoch"], r["step"]) for r in rows(run, "eval")] == [(1, 5), (1, 8), (2, 12)]
    assert newest(run).global_step == 12
    assert load_newest(run)["progress"]["batch"] == 4


def test_max_steps_at_the_end_of_an_epoch_is_its_end(tmp_path):
    made = parts("max_steps=8")
    ran = fit(made, tmp_path)
    assert len(ran.of(EpochEnd)) == 1
    assert (made.state.progress.epoch, made.state.progress.batch) == (1, 0)
    assert made.total_steps == 8


def test_early_stopping_ends_the_run(tmp_path):
    options = ("checkpoint/policy=[early_stopping]", "checkpoint.policy.early_stopping.patience=1")
    made = parts(*options, "optimizer=sgd", "optimizer.lr=0", "optimizer.weight_decay=0")
    ran = fit(made, tmp_path)
    assert isinstance(ran.end, RunEnd)
    assert ran.end.step == 16
    assert "has not improved" in ran.end.reason


def test_early_stopping_does_not_cut_a_ramp_short(tmp_path):
    """The accuracy falls while the network is pruned, and stays after it."""
    options = (
        "checkpoint/policy=[early_stopping]",
        "checkpoint.policy.early_stopping.patience=1",
        "epochs=8",
    )
    still = ("optimizer.lr=0", "optimizer.weight_decay=0", "pruning.target=0.7", "pruning.end_epoch=4")
    made = parts(*options, *still)
    assert fit(made, tmp_path / "waits").end.epoch == 5  # the first evaluation that counts, and one no better
    never = parts(*options, *still, "checkpoint.policy.early_stopping.from_epoch=0")
    assert fit(never, tmp_path / "counts").end.epoch < 4


def test_a_signal_while_evaluating_saves_the_epoch_without_an_evaluation(tmp_path):
    made = parts("eval_batch_size=2")
    batches = made.data.val_batches

    def val_batches():
        for index, batch in enumerate(batches()):
            if index == 2:
                made.loop.signal = 15
            yield batch

    made.data.val_batches = val_batches
    ran = fit(made, tmp_path)
    assert isinstance(ran.end, Interrupted)
    assert ran.of(EvalEnd) == []
    progress = serialize.load(tmp_path / "training" / "latest.pt")["progress"]
    assert (progress["epoch"], progress["batch"], progress["step"]) == (0, 8, 8)
    again = parts("eval_batch_size=2")
    again.state.restore(serialize.load(tmp_path / "training" / "latest.pt"))
    ran = fit(again, tmp_path.with_name("again"))
    assert [(e.epoch, e.step) for e in ran.of(EvalEnd)] == [(1, 8), (2, 16), (3, 24)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_cuda_a_step_that_does_not_log_waits_for_nothing(precision):
    made = parts("device=cuda", f"precision={precision}", "pruning.frequency=1000")
    batches = made.data.train_batches(1)
    made.state.model.train()
    for _ in range(3):
        made.loop._step(*next(batches))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            made.loop._step(*next(batches))
    finally:
        torch.cuda.set_sync_debug_mode("default")


WITHIN = (
    "eval_every_steps=3",
    "checkpoint/policy=[best,top_k,sparsity,interval]",
    "checkpoint.interval_steps=6",
)


def test_evaluations_within_an_epoch_share_the_moment_of_their_step(tmp_path):
    ran = fit(parts("eval_every_steps=4", "epochs=2", "checkpoint.interval_steps=4"), tmp_path)
    found = [(type(e).__name__, e.step) for e in ran.heard if isinstance(e, EvalEnd | EpochEnd)]
    assert found == [
        ("EvalEnd", 4),
        ("EvalEnd", 8),
        ("EpochEnd", 8),
        ("EvalEnd", 12),
        ("EvalEnd", 16),
        ("EpochEnd", 16),
    ]
    saved = [e.file for e in ran.of(Saved) if e.file.startswith("training/")]
    assert [name[-11:-3] for name in saved] == ["00000004", "00000008", "00000012", "00000016"]
    assert ran.parts.state.progress.evaluated_steps == {4, 8, 12, 16}


def test_an_evaluation_within_an_epoch_changes_no_step(tmp_path):
    plain = parts(*WITHIN, "eval_every_steps=null")
    fit(plain, tmp_path / "a")
    within = parts(*WITHIN)  # built after that run: dropout draws from the generator that this seeds
    ran = fit(within, tmp_path / "b")
    assert [e.step for e in ran.of(EvalEnd)] == [3, 6, 8, 9, 12, 15, 16, 18, 21, 24]
    assert torch.equal(weights(plain), weights(within))
    assert within.state.progress.evaluated_steps == {3, 6, 8, 9, 12, 15, 16, 18, 21, 24}


def test_early_stopping_ends_a_run_within_an_epoch(tmp_path):
    options = ("checkpoint/policy=[early_stopping]", "checkpoint.policy.early_stopping.patience=1")
    made = parts(
        *options, "eval_every_steps=3", "optimizer=sgd", "optimizer.lr=0", "optimizer.weight_decay=0"
    )
    ran = fit(made, tmp_path)
    assert (ran.end.epoch, ran.end.step) == (1, 6)


@pytest.mark.parametrize("step", [6, 12, 13])
def test_a_run_with_evaluations_within_epochs_resumes_bit_for_bit(tmp_path, step):
    """Also from the checkpoint of such an evaluation, which has its policies' counters and metrics."""
    whole = parts(*WITHIN)
    full = fit(whole, tmp_path / "whole")
    saved = interrupted(parts(*WITHIN), tmp_path / "cut", step)
    again = parts(*WITHIN)
    again.state.restore(saved)
    for name, policy in again.policies.items():
        policy.load_state_dict(saved["policies"][name])
    rest = fit(again, tmp_path / "rest")
    assert torch.equal(weights(whole), weights(again))
    assert [e for e in rest.of(EvalEnd) if e.step > step] == [e for e in full.of(EvalEnd) if e.step > step]


def test_a_signal_in_an_evaluation_within_an_epoch_keeps_the_step(tmp_path):
    made = parts(*WITHIN)
    evaluate = made.loop.evaluate

    def cut_short(batches):
        made.loop.signal = 15
        return evaluate(batches)

    made.loop.evaluate = cut_short
    ran = fit(made, tmp_path)
    assert ran.end == Interrupted(1, 3, 15)
    assert serialize.load(tmp_path / "training" / "latest.pt")["progress"]["batch"] == 3
