"""From the configuration to objects: every choice builds, and what only shows then is one clear line."""

import logging
import os

import pytest
import torch

from peakpoint.base.errors import UserError
from peakpoint.optimizers.parameters import prunable_weights
from tests.skips import HAS_CUDA
from tests.trainer.parts import parts

STEPS = 8  # an epoch of the small run


@pytest.fixture(autouse=True)
def torch_settings():
    """What a run sets for the whole process is put back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamwprune", "adamwspam", "sgd"])
def test_every_optimizer_decays_weights_and_neither_biases_nor_scales(optimizer):
    made = parts(f"optimizer={optimizer}", "optimizer.weight_decay=0.25", "model=resnet20", "model.dropout=0")
    prunable = {id(p) for p in prunable_weights(made.state.model).values()}
    for group in made.state.optimizer.param_groups:
        inside = {id(p) in prunable for p in group["params"]}
        assert inside == {group["weight_decay"] == 0.25}
    count = sum(len(g["params"]) for g in made.state.optimizer.param_groups)
    assert count == len(list(made.state.model.parameters()))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adamwspam", "sgd"])
def test_every_optimizer_is_pruned_when_a_target_is_given(optimizer):
    assert "pruning" not in parts(f"optimizer={optimizer}").state.gather()["optimizer_state_dict"]
    made = parts(f"optimizer={optimizer}", "pruning.target=0.5")
    assert "pruning" in made.state.gather()["optimizer_state_dict"]
    assert made.loop.mask_version() == 0


@pytest.mark.parametrize(
    ("options", "start", "end"),
    [
        ([], 0, 19),  # 0.8 of 24 steps
        (["pruning.start_fraction=0.25", "pruning.end_fraction=0.5"], 6, 12),
        (["pruning.start_epoch=0.5", "pruning.end_epoch=2"], 4, 16),
        (["pruning.start_step=3", "pruning.end_epoch=2"], 3, 16),
        (["max_steps=10"], 0, 8),
    ],
)
def test_pruning_starts_and_ends_at_a_step_an_epoch_or_a_fraction(options, start, end):
    made = parts(*options)
    saved = made.state.gather()["optimizer_state_dict"]["pruning"]
    assert (saved["settings"]["start_step"], saved["settings"]["end_step"]) == (start, end)


def test_pruning_that_would_end_before_it_starts_is_refused():
    with pytest.raises(UserError, match="Pruning would start at step 20 and end at step 8"):
        parts("pruning.start_step=20", "pruning.end_epoch=1")


def test_pruning_that_ends_after_the_epochs_is_refused():
    with pytest.raises(
        UserError, match="Pruning would end at step 25, after the last step 24 of the run, and"
    ):
        parts("pruning.end_step=25", "max_steps=10")
    assert parts("pruning.end_step=24").total_steps == 24


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["pruning.end_step=20"],
            "pruning ends at step 20, after the last step 10 of this run: 70 % will not be reached.",
        ),
        (
            ["scheduler.warmup_epochs=2"],
            "the warm-up lasts 16 steps, and this run 10: optimizer.lr will not be reached.",
        ),
    ],
)
def test_what_max_steps_cuts_off_is_a_warning(caplog, options, expected):
    caplog.set_level(logging.WARNING, "peakpoint")
    parts("max_steps=10", *options)
    assert [r.getMessage() for r in caplog.records] == [expected]


def test_what_ends_with_the_last_step_is_not_warned_of(caplog):
    caplog.set_level(logging.WARNING, "peakpoint")
    parts("max_steps=8", "scheduler.warmup_epochs=1", "pruning.end_epoch=1")
    assert caplog.messages == []


@pytest.mark.parametrize("threads", [2, 1])
def test_threads_are_as_configured(threads):
    parts(f"threads={threads}")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("options", "total"), [([], 24), (["max_steps=5"], 5), (["max_steps=500"], 24)])
def test_the_number_of_steps(options, total):
    made = parts(*options)
    assert (made.total_steps, made.data.steps_per_epoch) == (total, STEPS)


def test_a_gpu_that_is_not_there_is_one_clear_line():
    if torch.cuda.is_available():
        pytest.skip(HAS_CUDA)
    with pytest.raises(UserError, match="device=cuda, but torch finds no CUDA device"):
        parts("device=cuda")


@pytest.mark.parametrize("value", [True, False])
def test_channels_last_and_deterministic_are_as_configured(value):
    word = str(value).lower()
    made = parts(f"channels_last={word}", f"deterministic={word}", "model=resnet20", "model.dropout=0")
    weight = next(p for p in made.state.model.parameters() if p.dim() == 4 and p.shape[1] > 3)
    assert weight.is_contiguous(memory_format=torch.channels_last) is value
    assert torch.are_deterministic_algorithms_enabled() is value
    assert torch.backends.cudnn.benchmark is not value


def test_the_same_seed_builds_the_same_network_and_another_another():
    def first(*options):
        return next(parts(*options).state.model.parameters())

    assert torch.equal(first(), first())
    assert not torch.equal(first(), first("seed=1"))


def test_what_a_checkpoint_needs_to_be_used_without_the_data_is_in_its_metadata():
    made = parts()
    metadata = made.state.gather()["metadata"]
    assert metadata["image_shape"] == [3, 12, 12]
    assert len(metadata["classes"]) == 4
    assert len(metadata["mean"]) == len(metadata["std"]) == 3
    assert metadata["data"] == made.data.fingerprint
    assert {"device", "pytorch_version", "threads"} <= set(metadata)
