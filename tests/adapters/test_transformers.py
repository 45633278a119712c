"""The callback for the transformers Trainer, in real trainings."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from peakpoint import CheckpointError, CheckpointManager, load
from peakpoint.checkpointing.policies.early_stopping import EarlyStopping
from peakpoint.checkpointing.policies.interval import Interval
from peakpoint.checkpointing.storage import listing
from tests.checkpointing.checkpoint_cases import damage
from tests.checkpointing.policies import policy_cases as case
from tests.states import differences

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore")

from peakpoint.adapters.transformers import PeakpointCallback, newest  # noqa: E402

EXACT = ("model_state_dict", "optimizer_state_dict", "scheduler_state_dict", "rng_state")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 2))

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


def rows():
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
    return [{"x": row, "labels": int(row.sum() > 0)} for row in x]


def rolling(keep=2, **periods):
    return Interval(**{"epochs": None, "steps": None, **periods}, keep_last=keep)


def train(
    root, *, model=Model, epochs=4, steps=-1, policies=None, accuracies=(), resume=False, seed=0,
    evaluate="no", compress=False, also=(), **more,
):  # fmt: skip
    torch.manual_seed(seed)
    values = iter(accuracies)
    callback = PeakpointCallback(root, policies or {"rolling": rolling(epochs=1)}, compress=compress)
    arguments = transformers.TrainingArguments(
        output_dir=str(root / "hf"), num_train_epochs=epochs, per_device_train_batch_size=8,
        save_strategy="no", eval_strategy=evaluate, report_to=[], use_cpu=True, disable_tqdm=True,
        learning_rate=0.01, logging_strategy="no", seed=11, **more,
    )  # fmt: skip

    class Halt(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop |= state.global_step == steps

    trainer = transformers.Trainer(
        model(), arguments, train_dataset=rows(), eval_dataset=rows(), callbacks=[callback, Halt(), *also],
        compute_metrics=lambda _: {"accuracy": next(values, 0.5)},
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=callback.resume_folder() if resume else None)
    return trainer


def best():
    return {"best": case.best(eval_accuracy="max")}


def milestones(root):
    return [m.metrics["eval_accuracy"] for m in listing.manifests(root) if m.tier == "milestone"]


def test_the_best_is_kept_whatever_came_first(tmp_path):
    values = [math.nan, 0.0, 0.9, 0.5, math.inf]
    train(tmp_path, epochs=5, policies=best(), accuracies=values, evaluate="epoch")
    assert milestones(tmp_path) == [0.9]
    (found,) = [m for m in listing.manifests(tmp_path) if m.tier == "milestone"]
    assert (found.epoch, found.global_step) == (3, 9)


@pytest.mark.parametrize("rhythm", [{"epochs": 1}, {"steps": 3}])
def test_an_epoch_its_last_step_and_its_evaluation_share_a_file(tmp_path, rhythm):
    policies = best() | {"rolling": rolling(**rhythm)}
    train(tmp_path, epochs=1, policies=policies, accuracies=[0.7], evaluate="epoch")
    milestone, training = listing.manifests(tmp_path)
    assert (milestone.tier, training.tier) == ("milestone", "training")
    assert training.metrics["eval_accuracy"] == 0.7
    assert milestone.digest == training.digest
    assert (tmp_path / milestone.file).samefile(tmp_path / training.file)


def test_an_evaluation_of_the_last_step_shares_its_file(tmp_path):
    policies = best() | {"rolling": rolling(epochs=1, steps=1, keep=9)}
    train(tmp_path, epochs=1, policies=policies, accuracies=[0.5, 0.6, 0.7], evaluate="steps", eval_steps=1)
    last = [m for m in listing.manifests(tmp_path) if m.global_step == 3]
    assert sorted(m.tier for m in last) == ["milestone", "training"]
    assert len({m.digest for m in last}) == 1


@pytest.mark.parametrize("cut", [3, 4, 8])
def test_a_resumed_training_equals_the_whole_one_bit_for_bit(tmp_path, cut):
    each = {"rolling": rolling(steps=1)}
    train(tmp_path / "whole", policies=each)
    train(tmp_path / "cut", policies=each, steps=cut)
    assert load(newest(tmp_path / "cut"))["global_step"] == cut
    train(tmp_path / "cut", policies=each, resume=True, seed=99)
    whole, resumed = (load(newest(tmp_path / name)) for name in ("whole", "cut"))
    assert resumed["global_step"] == whole["global_step"] == 12
    for name in EXACT:
        assert not differences({name: resumed[name]}, {name: whole[name]}), name
    assert not list(tmp_path.rglob(".resume"))


def test_worse_after_a_resume_is_not_best(tmp_path):
    train(tmp_path, policies=best(), accuracies=[0.9], evaluate="epoch", steps=3)
    train(tmp_path, policies=best(), accuracies=[0.3, 0.2, 0.1], evaluate="epoch", resume=True)
    assert milestones(tmp_path) == [0.9]


def test_a_damaged_file_is_passed_over(tmp_path):
    train(tmp_path, epochs=2)
    damage(newest(tmp_path))
    trainer = train(tmp_path, epochs=3, resume=True)
    assert trainer.state.global_step == 9
    assert len(list((tmp_path / "quarantine").glob("*.pt"))) == 1


def test_of_two_callbacks_that_share_a_directory_the_training_ends_with_one_line(tmp_path):
    second = PeakpointCallback(tmp_path, {"second": rolling(steps=1)})
    with pytest.raises(CheckpointError, match="opened by another callback"):
        train(tmp_path, epochs=1, policies={"first": rolling(steps=1)}, also=[second])


def test_a_training_that_an_error_ended_does_not_keep_the_next_one_out(tmp_path):
    class Fails(Model):
        def forward(self, x, labels):
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as error:  # whose frames hold the callback
        train(tmp_path, model=Fails, epochs=1)
    train(tmp_path, epochs=1)
    assert newest(tmp_path)
    del error


def test_a_checkpoint_of_a_loop_of_ones_own_is_not_unfolded(tmp_path):
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    CheckpointManager(tmp_path).save_training_checkpoint(model, optimizer, epoch=1, step=1)
    with pytest.raises(CheckpointError, match=r"step_00000001\.pt was not saved by this callback"):
        PeakpointCallback(tmp_path, best()).resume_folder()


def test_nothing_to_resume_from_starts_anew(tmp_path):
    assert train(tmp_path, epochs=1, resume=True).state.global_step == 3


def test_a_policy_stops_the_training(tmp_path):
    settings = EarlyStopping(metric="eval_accuracy", mode="max", patience=2, min_delta=0.0)
    trainer = train(tmp_path, epochs=9, policies={"stop": settings}, evaluate="epoch")
    assert trainer.state.global_step == 9


def test_compressed_a_pruned_network_is_small_and_resumes_bit_for_bit(tmp_path):
    def pruned():
        model = Model()
        model.net[0], model.net[3] = nn.Linear(6, 4000), nn.Linear(4000, 2)
        model.net[0].weight.requires_grad_(False).zero_()
        return model

    def fit(root, *, steps, **more):
        plain = {"optim": "sgd", "lr_scheduler_type": "constant", "max_steps": steps}
        train(root, model=pruned, policies={"rolling": rolling(steps=1)}, **plain, **more)

    for compress in (False, True):
        fit(tmp_path / f"{compress}", steps=2, compress=compress)
    sizes = [newest(tmp_path / name).stat().st_size for name in ("True", "False")]
    assert sizes[0] < 0.6 * sizes[1]
    for compress in (False, True):
        fit(tmp_path / f"{compress}", steps=4, compress=compress, resume=True)
    packed, plain = (load(newest(tmp_path / name)) for name in ("True", "False"))
    assert packed["global_step"] == plain["global_step"] == 4
    assert not differences(packed["model_state_dict"], plain["model_state_dict"])


def test_epochs_are_those_that_the_trainer_shows(tmp_path):
    policies = best() | {"rolling": rolling(steps=1, keep=9)}
    trainer = train(tmp_path, epochs=2, policies=policies, accuracies=[0.1, 0.2], evaluate="epoch")
    shown = [row["epoch"] for row in trainer.state.log_history if "eval_accuracy" in row]
    found = listing.manifests(tmp_path)
    assert shown == [1.0, 2.0]
    assert [m.epoch for m in found if m.tier == "milestone"] == shown[1:]
    # Within an epoch the Trainer shows 0.33 and 0.67 of it: the one that is under way.
    steps = {m.global_step: m.epoch for m in found if "interval" in m.tags}
    assert steps == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}
