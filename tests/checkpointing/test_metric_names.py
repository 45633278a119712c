"""Which way a metric is better: by its name, by what was stated before, or refused; everywhere the same."""

import math

import pytest
from torch import nn

from peakpoint import CheckpointError, CheckpointManager, load
from peakpoint.checkpointing.metrics import bad_loss, direction
from peakpoint.checkpointing.policies.best import Best, Metric
from peakpoint.checkpointing.policies.early_stopping import EarlyStopping
from peakpoint.checkpointing.policies.ranking import warn_of_mode
from peakpoint.checkpointing.policies.sparsity import Sparsity
from peakpoint.checkpointing.policies.top_k import TopK
from peakpoint.deployment.selection import rules
from tests.checkpointing.api_cases import Training
from tests.conftest import one_line

LOWER = """loss mae wer rmse nll bpc fid cer mse error perplexity val_loss eval/loss loss_val valid-WER
    valLoss MSELoss top5_error dice_loss mean_squared_error CharErrorRate weights_bytes latency_ms wer1"""
HIGHER = """accuracy f1 f1_score auc top1 top5_accuracy bleu r2 map mAP50 mIoU val_acc testacc ROC-AUC
    MulticlassAccuracy eval_accuracy recall@10 sparsity loss_head_accuracy"""
UNKNOWN = """score quality neg_mean_squared_error error_reduction mae_std loss_scale false_negative_rate
    glossary точность 2 1-acc one_minus_accuracy"""


@pytest.mark.parametrize(
    ("mode", "name"),
    [(mode, n) for mode, names in (("min", LOWER), ("max", HIGHER), (None, UNKNOWN)) for n in names.split()]
    + [(None, "")],
)
def test_the_direction_of_a_name(mode, name):
    assert direction(name) == mode


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
        CheckpointError, match=r"name quality does not say .*: give mode=\"max\" or mode=\"min\""
    ):
        manager.save_milestone_checkpoint(t.model, 0.5, "quality", 1)
    with pytest.raises(CheckpointError, match=r"did you mean accuracy\? If not, give mode="):
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
        ("[wer]", "mine.yaml: wer is better the lower it is: write -wer"),
        ("[val_loss]", "write -val_loss"),
        ("[quality]", "name quality does not say .* write {metric: quality, mode: max}"),
    ],
)
def test_rules_do_not_rank_an_error_as_a_success(tmp_path, rank, line):
    path = tmp_path / "mine.yaml"
    path.write_text(f"rank: {rank}\ntie: null")
    with one_line(CheckpointError, match=line):
        rules.load(path)
    path.write_text("rank: [-wer, {metric: quality, mode: max}, sparsity, epoch, -global_step]\ntie: null")
    modes = [key.mode for key in rules.load(path).rank]
    assert modes == ["min", "max", "max", "max", "min"]


def test_a_mode_against_the_name_is_taken_and_reported_once(tmp_path, caplog):
    manager, t = CheckpointManager(tmp_path / "c"), Training()
    warn_of_mode.cache_clear()
    for value in (0.9, 0.5):
        assert manager.save_milestone_checkpoint(t.model, value, "valid_acc", 1, mode="min")
    Best(metrics={"valid_acc": Metric(mode="min", min_delta=0.0)}, keep=1)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "mode=min is used for valid_acc, although its name says that higher values are better."
    assert manager.save_milestone_checkpoint(t.model, 0.95, "valid_acc", 2) is None  # stated once, it holds
    caplog.clear()
    assert manager.save_milestone_checkpoint(t.model, 0.95, "valid_acc", 2, mode="max")
    assert caplog.messages == [
        "mode=max is used for valid_acc, although its last milestone here had mode=min."
    ]


@pytest.mark.parametrize("policy", ["top_k", "sparsity", "early_stopping"])
def test_every_policy_warns_of_a_mode_against_the_name(policy, caplog):
    warn_of_mode.cache_clear()
    if policy == "top_k":
        TopK(metric="wer", mode="max", k=1)
    elif policy == "sparsity":
        Sparsity(
                metric="wer", mode="max", min_delta=0.0, targets=[0.5], rule="at_least", tolerance=0.01,
                jump_over=True, settled=0, keep=1,
            )  # fmt: skip
    else:
        EarlyStopping(metric="wer", mode="max", patience=1, min_delta=0.0)
    assert caplog.messages == [
        "mode=max is used for wer, although its name says that lower values are better."
    ]


def test_the_last_mode_that_was_stated_of_a_metric_holds(tmp_path):
    manager, t = CheckpointManager(tmp_path / "c"), Training()
    for value, mode in ((1.0, "max"), (0.5, "min"), (0.4, None)):
        assert manager.save_milestone_checkpoint(t.model, value, "quality", 1, mode=mode)
    assert manager.save_milestone_checkpoint(t.model, 2.0, "quality", 1) is None


@pytest.mark.parametrize("name", ["", 5, None])
def test_the_name_of_a_metric_is_text_whether_or_not_its_mode_is_stated(tmp_path, name):
    manager, t = CheckpointManager(tmp_path / "c"), Training()
    for mode in ("max", None):
        with pytest.raises(CheckpointError, match="is not a name"):
            manager.save_milestone_checkpoint(t.model, 0.5, name, 1, mode=mode)


def test_a_number_beyond_floats_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"The metric accuracy is .*: give a number"):
        CheckpointManager(tmp_path / "c").save_milestone_checkpoint(Training().model, 10**400, "accuracy", 1)


@pytest.mark.parametrize("network", [nn.LazyLinear(2), nn.Linear(2, 2, device="meta")])
def test_a_network_without_values_is_refused_in_one_line(tmp_path, network):
    with pytest.raises(CheckpointError, match="weight has no values yet: call the network once"):
        CheckpointManager(tmp_path / "c").save_milestone_checkpoint(network, 0.5, "accuracy", 1)
