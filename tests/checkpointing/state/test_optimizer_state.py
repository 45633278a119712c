"""Saved state meets another optimizer or schedule: what does not belong is stated, or refused untouched."""

import pytest
import torch
from torch import nn

from peakpoint import CheckpointError, CheckpointManager, load_checkpoint, resume_training
from peakpoint.checkpointing.state import optimizer_state
from peakpoint.checkpointing.state.objects import _restore_schedule
from peakpoint.checkpointing.state.optimizer_state import check_kind
from peakpoint.optimizers.parameters import param_groups
from peakpoint.optimizers.pruning.pruner import Pruner
from tests.checkpointing.api_cases import Training, save
from tests.optimizers.optimizer_cases import settings
from tests.states import differences

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD without momentum": lambda p: torch.optim.SGD(p, lr=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("load", [load_checkpoint, resume_training])
def test_the_state_of_another_kind_is_refused_before_anything_is_touched(manager, t, name, load):
    t.epoch(0)
    path = save(manager, t)
    other = Training(1)
    other.optimizer = OPTIMIZERS[name](other.model.parameters())
    before = other.state()
    with pytest.raises(
        CheckpointError, match=rf"is of AdamW, and {name.split()[0]} cannot continue"
    ) as refusal:
        load(path, other.model, other.optimizer)
    assert "\n" not in str(refusal.value)
    assert differences(other.state(), before) == []


def test_adamw_cannot_go_on_with_what_sgd_saved(manager, t):
    t.optimizer = torch.optim.SGD(t.model.parameters(), lr=0.1, momentum=0.9)
    path = save(manager, t)
    with pytest.raises(CheckpointError, match="is of SGD, and AdamW cannot continue"):
        load_checkpoint(path, t.model, Training(1).optimizer)


def test_a_file_that_does_not_name_its_optimizer_is_refused_by_its_settings(t):
    """As files before this one's format."""
    sgd = torch.optim.SGD(t.model.parameters(), lr=0.1)
    with pytest.raises(
        CheckpointError, match=r"is of an optimizer with amsgrad, betas, .*eps, and SGD cannot"
    ):
        check_kind(sgd, t.optimizer.state_dict())


@pytest.mark.parametrize(
    "made", [torch.optim.Adam, type("Mine", (torch.optim.AdamW,), {}), torch.optim.RAdam]
)
def test_the_same_moments_serve_a_relative(manager, t, made, caplog):
    t.epoch(0)
    path = save(manager, t)
    other = Training(1)
    other.optimizer = made(other.model.parameters(), lr=0.5)
    resume_training(path, other.model, other.optimizer)
    assert not [r for r in caplog.records if "optimizer" in r.getMessage()]
    moments = [
        each.state[each.param_groups[0]["params"][0]]["exp_avg"] for each in (t.optimizer, other.optimizer)
    ]
    assert torch.equal(*moments)
    other.scheduler = torch.optim.lr_scheduler.StepLR(other.optimizer, 3)
    other.epoch(0)


def test_state_beside_that_of_the_parameters_is_reported_when_nothing_takes_it(manager, t, caplog):
    """A pruner's masks, as those of a run of the trainer."""

    def pruned(model):
        return torch.optim.AdamW(param_groups(model, 0.0), lr=1e-2)

    t.optimizer = pruned(t.model)
    Pruner(t.optimizer, settings(end_step=3))
    t.scheduler = torch.optim.lr_scheduler.StepLR(t.optimizer, 3)
    t.epoch(0)
    path = save(manager, t)
    other = Training(1)
    other.optimizer = pruned(other.model)
    resume_training(path, other.model, other.optimizer)
    assert "The checkpoint's optimizer has 'pruning', which nothing takes now: dropped." in caplog.text
    caplog.clear()
    dense = save(manager, other, step=9)
    Pruner(other.optimizer, settings())
    resume_training(dense, other.model, other.optimizer)
    assert "The checkpoint's optimizer has no 'pruning': it begins anew." in caplog.text


class Counting(torch.optim.Optimizer):
    """Keeps a count by the setting `counted`; takes its steps on any parameter."""

    def __init__(self, params, counted):
        super().__init__(params, {"lr": 0.1, "counted": counted})

    def step(self):
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                state["seen"] = state.get("seen", 0) + 1
                if group["counted"]:
                    state.setdefault("count", 0)


class Strange(Counting):
    """Cannot take a step on what stands in for a parameter."""

    def step(self):
        if self.param_groups[0]["params"][0].numel() == 1:
            raise RuntimeError("too small")
        super().step()


def test_what_nobody_knows_how_to_begin_is_refused(t):
    for made in (Counting, Strange):
        plain = made(t.model.parameters(), counted=False)
        plain.step()
        wanting = made(t.model.parameters(), counted=True)
        if made is Strange:  # what it needs cannot be found out
            assert optimizer_state.load(wanting, plain.state_dict(), keep_settings=True) == []
        else:
            with pytest.raises(CheckpointError, match="Counting needs count with these settings"):
                optimizer_state.load(wanting, plain.state_dict(), keep_settings=True)


def test_an_optimizer_that_lacks_something_of_its_state_is_as_it_was(manager, t):
    """torch takes a state before it is seen to lack something."""
    t.epoch(0)
    for state in t.optimizer.state.values():
        del state["exp_avg_sq"]
    path = save(manager, t)
    other = Training(1)
    other.epoch(0)
    before = other.state()
    with pytest.raises(CheckpointError, match="AdamW needs exp_avg_sq with these settings"):
        load_checkpoint(path, other.model, other.optimizer)
    assert differences(other.state(), before) == []


def test_what_the_settings_do_not_need_is_reported_and_dropped():
    network = nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    saved = torch.optim.AdamW(network.parameters(), amsgrad=True)
    saved.step()
    living = torch.optim.AdamW(network.parameters())
    (reported,) = optimizer_state.load(living, saved.state_dict(), keep_settings=True)
    assert reported.endswith("what the checkpoint has, dropped: max_exp_avg_sq.")
    assert [set(state) for state in living.state.values()] == [{"step", "exp_avg", "exp_avg_sq"}] * 2


def test_what_begins_as_a_copy_is_no_alias():
    network = nn.Linear(2, 2)
    network(torch.ones(1, 2)).sum().backward()
    saved = torch.optim.AdamW(network.parameters())
    saved.step()
    living = torch.optim.AdamW(network.parameters(), amsgrad=True)
    (reported,) = optimizer_state.load(living, saved.state_dict(), keep_settings=True)
    assert reported.endswith("max_exp_avg_sq begins as exp_avg_sq.")
    for state in living.state.values():
        assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])
        assert state["max_exp_avg_sq"].data_ptr() != state["exp_avg_sq"].data_ptr()


def test_a_schedule_without_a_taker_is_reported_by_a_resume_alone(manager, t, caplog):
    path = save(manager, t, scheduler=t.scheduler)
    assert load_checkpoint(path, t.model, t.optimizer)["not_restored"] == []
    assert caplog.messages == []
    assert resume_training(path, t.model, t.optimizer)["not_restored"] == ["scheduler_state_dict"]
    assert "no scheduler was given to take it" in caplog.text


def test_another_schedule_is_reported_and_starts_anew(manager, t, caplog):
    t.epoch(0)
    path = save(manager, t, scheduler=t.scheduler)
    other = Training(1)
    other.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(other.optimizer, 10)
    before = dict(other.scheduler.state_dict())
    state = load_checkpoint(path, other.model, other.optimizer, other.scheduler)
    assert state["not_restored"] == ["scheduler_state_dict"]
    assert (
        "schedule (of base_lrs, gamma, last_epoch, step_size) is another than the CosineAnnealingLR"
        in caplog.text
    )
    assert other.scheduler.state_dict() == before


def test_a_schedule_that_an_older_torch_saved_is_taken(manager, t):
    saved = {**t.scheduler.state_dict(), "verbose": False, "_of_older_torch": 1, "last_epoch": 7}
    assert _restore_schedule(saved, t.scheduler, resumed=True) == []
    assert t.scheduler.last_epoch == 7


@pytest.mark.parametrize("make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)])
def test_a_checkpoint_from_before_the_first_step_lacks_nothing(tmp_path, caplog, make):
    network = nn.Linear(2, 2)
    optimizer = make(network.parameters())
    manager = CheckpointManager(tmp_path / "c")
    path = manager.save_training_checkpoint(network, optimizer, epoch=0, step=0)
    manager.load_checkpoint(path, network, make(network.parameters()))
    assert caplog.messages == []
