"""Which way a metric is better: by its name, by what was said before, or refused; everywhere the same."""

import math

import pytest

from checkpointing import CheckpointError, CheckpointManager, load, rules
from checkpointing.metrics import bad_loss, direction
from tests.checkpointing.api_cases import Training
from trainer.check import METRICS

LOWER = """mae wer rmse nll bpc fid cer mse error perplexity val_loss eval/loss loss_val valid-WER valLoss
    MSELoss top5_error dice_loss mean_squared_error CharErrorRate weights_bytes latency_ms wer1"""
HIGHER = """accuracy f1 f1_score auc top1 top5_accuracy bleu r2 map mAP50 mIoU val_acc testacc ROC-AUC
    MulticlassAccuracy eval_accuracy recall@10 sparsity loss_head_accuracy"""
UNKNOWN = """score quality neg_mean_squared_error error_reduction mae_std loss_scale false_negative_rate
    glossary точность 2"""


@pytest.mark.parametrize("name", LOWER.split())
def test_a_name_whose_lower_values_are_better(name):
    assert direction(name) == "min"


@pytest.mark.parametrize("name", HIGHER.split())
def test_a_name_whose_higher_values_are_better(name):
    assert direction(name) == "max"


@pytest.mark.parametrize("name", [*UNKNOWN.split(), ""])
def test_a_name_that_does_not_say(name):
    assert direction(name) is None


def test_what_the_trainer_measures_is_known_by_name():
    assert METRICS == {"accuracy": "max", "top5_accuracy": "max", "f1_score": "max", "loss": "min"}


def test_which_loss_of_an_evaluation_is_not_finite():
    assert bad_loss({"accuracy": 0.9, "val_loss": math.nan}) == "val_loss"
    assert bad_loss({"accuracy": 0.9, "eval/nll": math.inf}) == "eval/nll"
    for fine in (
        {"loss": 1.0},
        {"accuracy": math.nan},
        {"train_loss": math.nan},
        {"trainloss": math.inf},
        {},
    ):
        assert bad_loss(fine) is None


@pytest.mark.parametrize("name", ["mae", "wer", "rmse", "nll", "val_mae"])
def test_the_library_saves_the_lower_of_an_error(tmp_path, name):
    manager, t = CheckpointManager(tmp_path / "c"), Training()
    saved = [manager.save_milestone_checkpoint(t.model, v, name, e) for e, v in enumerate([0.5, 0.4, 0.6])]
    assert [bool(path) for path in saved] == [True, True, False]
    assert load(manager.get_latest_checkpoint("milestone"))["metrics"] == {name: 0.4}


def test_an_unknown_name_needs_its_mode_once(tmp_path):
    manager, t = CheckpointManager(tmp_path / "c"), Training()
    with pytest.raises(
        CheckpointError, match=r"name quality does not say .*: say mode=\"max\" or mode=\"min\""
    ):
        manager.save_milestone_checkpoint(t.model, 0.5, "quality", 1)
    with pytest.raises(CheckpointError, match=r"did you mean accuracy\? If not, say mode="):
        manager.save_milestone_checkpoint(t.model, 0.5, "acuracy", 1)
    assert manager.list_checkpoints()["milestone"] == []
    assert manager.save_milestone_checkpoint(t.model, 0.5, "quality", 1, mode="min")
    manager.close()
    again = CheckpointManager(tmp_path / "c")
    assert again.save_milestone_checkpoint(t.model, 0.6, "quality", 2) is None
    assert again.save_milestone_checkpoint(t.model, 0.4, "quality", 3)
    assert again.save_milestone_checkpoint(t.model, 0.6, "quality", 4, mode="max")


@pytest.mark.parametrize(
    ("rank", "line"),
    [
        ("[wer]", r"rank\[0\]: wer is better the lower it is: write -wer"),
        ("[val_loss]", "write -val_loss"),
        ("[quality]", "name quality does not say .* write {metric: quality, mode: max}"),
    ],
)
def test_rules_do_not_rank_an_error_as_a_success(tmp_path, rank, line):
    path = tmp_path / "mine.yaml"
    path.write_text(f"rank: {rank}\ntie: null")
    with pytest.raises(CheckpointError, match=line) as caught:
        rules.load(path)
    assert "\n" not in str(caught.value)
    path.write_text("rank: [-wer, {metric: quality, mode: max}, sparsity, epoch, -global_step]\ntie: null")
    modes = [key.mode for key in rules.load(path).rank]
    assert modes == ["min", "max", "max", "max", "min"]
