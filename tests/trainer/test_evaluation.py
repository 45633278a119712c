"""Metrics against scikit-learn and by hand."""

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, top_k_accuracy_score

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.metrics import METRICS
from peakpoint.trainer.evaluation import Classification
from tests.skips import NO_CUDA

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)),
]


def batches(classes, samples, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(samples, classes, generator=generator)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    return logits, labels


def measure(logits, labels, *, classes=None, size=7, device="cpu"):
    metrics = Classification(classes or logits.shape[1], torch.device(device))
    for start in range(0, len(labels), size):
        metrics.update(logits[start : start + size].to(device), labels[start : start + size].to(device))
    return metrics.compute()


def test_each_measured_metric_has_its_record():
    assert measure(*batches(10, 50)).keys() == METRICS.keys()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("classes", "samples"), [(2, 9), (10, 100), (100, 257)])
def test_as_scikit_learn(classes, samples, device):
    # With 100 classes and 257 samples, some classes are never predicted and some never a label.
    logits, labels = batches(classes, samples)
    found = measure(logits, labels, device=device)
    guesses, scores = logits.argmax(1), logits.double().softmax(1)
    every = range(classes)
    assert found["loss"] == pytest.approx(log_loss(labels, scores, labels=every), rel=1e-6)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, guesses), abs=1e-15)
    assert found["f1_score"] == pytest.approx(f1_score(labels, guesses, average="macro"), abs=1e-12)
    if classes > 5:
        expected = top_k_accuracy_score(labels, scores, k=5, labels=every)
        assert found["top5_accuracy"] == pytest.approx(expected, abs=1e-15)
    else:
        assert found["top5_accuracy"] == 1


def test_the_size_of_the_batches_does_not_matter():
    logits, labels = batches(10, 50)
    whole = measure(logits, labels, size=50)
    parts = measure(logits, labels, size=3)
    assert parts.pop("loss") == pytest.approx(whole.pop("loss"), rel=1e-12)
    assert parts == whole


def test_a_small_loss_is_not_lost_beside_a_large_one():
    # In float32 the sum after the first sample moves in steps of 2.
    logits = torch.tensor([[0.0, 2e7], *[[0.0, 0.1]] * 20])
    small = math.log(1 + math.exp(0.1))
    found = measure(logits, torch.zeros(21, dtype=torch.int64), size=1)
    assert found["loss"] == pytest.approx((2e7 + 20 * small) / 21, rel=1e-12)


def test_nan_logits_give_a_nan_loss_and_no_lucky_guess():
    logits, labels = torch.full((4, 3), torch.nan), torch.tensor([0, 0, 1, 2])
    found = measure(logits, labels)
    assert math.isnan(found.pop("loss"))
    assert set(found.values()) == {0.0}


def test_half_precision_logits_and_gradients_are_taken():
    logits, labels = batches(10, 30)
    exact = measure(logits.bfloat16().float(), labels)
    assert measure(logits.bfloat16().requires_grad_(), labels) == exact


def test_no_sample_is_a_clear_error():
    with pytest.raises(UserError, match="nothing to evaluate"):
        Classification(10, torch.device("cpu")).compute()


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
def test_update_never_waits_for_the_gpu():
    device = torch.device("cuda")
    logits, labels = (t.to(device) for t in batches(10, 50))
    metrics = Classification(10, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.update(logits, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics.compute() == pytest.approx(measure(*batches(10, 50)), rel=1e-6)


def test_the_cells_of_the_confusion_matrix():
    metrics = Classification(3, torch.device("cpu"), confusion=True)
    logits = torch.eye(3)[[0, 1, 1, 2]]
    logits[3, 0] = torch.nan
    metrics.update(logits, torch.tensor([0, 0, 0, 2]))
    assert metrics.cells() == [[0, 0, 1], [0, 1, 2], [2, 3, 1]]
    with pytest.raises(ValueError, match="confusion"):
        Classification(3, torch.device("cpu")).cells()
