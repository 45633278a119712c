"""What TensorBoard reads of a run: its curves, whatever ended an attempt, and its row of HPARAMS."""

import math
import signal

import pytest

from peakpoint.checkpointing.events import EvalEnd, Interrupted
from peakpoint.trainer.listeners import hparams
from peakpoint.trainer.listeners.events import Logged
from peakpoint.trainer.listeners.jsonl import JsonLines
from peakpoint.trainer.listeners.tensorboard import TensorBoard
from peakpoint.trainer.reports.study import read_result
from tests.conftest import TINY, rows
from tests.trainer.listeners.test_listeners import EVENTS, METRICS, strict

OURS = [word for word in TINY if not word.startswith("logger")]


def scalars(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    return {tag: [(s.step, s.value) for s in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_tensorboard_reads_what_was_written(tmp_path):
    board = TensorBoard(tmp_path, 0, {})
    for event in EVENTS:
        board(event)
    board.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(3, 2.5)]
    assert found["val/accuracy"] == [(16, 0.5)]
    assert found["val/sparsity"] == [(16, pytest.approx(0.7))]
    assert found["test_selected/accuracy"] == [(16, 0.5)]
    assert {"train/lr", "train/images_per_second", "val/loss", "val/f1_score"} <= set(found)


def test_in_tensorboard_a_resumed_run_replaces_what_it_repeats(train, tmp_path):
    done = train(*OURS, "epochs=2", "log_every=2", "checkpoint.interval=1", "hydra.run.dir=run")
    assert done.code == 0, done.err
    early = tmp_path / "run" / "checkpoints" / "training" / "checkpoint_epoch_0001_step_00000008.pt"
    done = train(f"resume={early}", "log_every=4", "epochs=3")
    assert done.code == 0, done.err
    found = scalars(tmp_path / "run")
    assert [step for step, _ in found["train/loss"]] == [2, 4, 6, 8, 12, 16, 20, 24]
    assert [step for step, _ in found["val/accuracy"]] == [8, 16, 24]
    assert [r["step"] for r in rows(tmp_path / "run", "eval")] == [8, 16, 24]
    assert [r["step"] for r in rows(tmp_path / "run", "train")] == [2, 4, 6, 8, 12, 16, 20, 24]
    aside = (tmp_path / "run" / "metrics.superseded.jsonl").read_text().splitlines()
    kinds = [(strict(line)["kind"], strict(line).get("step")) for line in aside]
    assert [k for k in kinds if k[0] != "test"] == [
        ("train", 10), ("train", 12), ("train", 14), ("train", 16), ("eval", 16),
    ]  # fmt: skip


def test_in_tensorboard_a_mid_epoch_resume_keeps_one_curve_of_each_layer(train, tmp_path):
    ramp = ("pruning.target=0.7", "pruning.start_step=2", "pruning.end_step=10")
    done = train(*OURS, *ramp, "epochs=2", "eval_every_steps=4", "checkpoint.interval_steps=4",
                 "checkpoint.keep_last=9", "hydra.run.dir=run")  # fmt: skip
    assert done.code == 0, done.err
    early = tmp_path / "run" / "checkpoints" / "training" / "checkpoint_epoch_0002_step_00000012.pt"
    done = train(f"resume={early}")
    assert done.code == 0, done.err
    found = scalars(tmp_path / "run")
    layers = {tag for tag in found if tag.startswith("sparsity/")}
    assert layers == {f"sparsity/{name}" for name in rows(tmp_path / "run", "eval")[-1]["layers"]}
    for tag in ("val/accuracy", *layers):
        assert [step for step, _ in found[tag]] == [4, 8, 12, 16]


def test_in_tensorboard_a_start_at_the_beginning_replaces_what_a_kill_left(tmp_path):
    for loss in (2.0, 3.0):
        board = TensorBoard(tmp_path, 0, {})
        board(Logged(1, 3, loss, 0.001, 100.0))
        board.close()
    assert scalars(tmp_path)["train/loss"] == [(3, 3.0)]


@pytest.mark.parametrize("evaluated", [set(), {8}], ids=["repeated", "in the checkpoint"])
def test_of_the_step_of_the_checkpoint_only_what_is_repeated_is_replaced(tmp_path, evaluated):
    logged, measured = Logged(1, 8, math.inf, 0.1, 50.0), EvalEnd(1, 8, METRICS, 0.7, 1, layers={"conv": 0.7})
    for start, events in ((0, [logged, measured]), (8, [] if evaluated else [measured])):
        lines, board = JsonLines(tmp_path, start, evaluated), TensorBoard(tmp_path, start, {})
        for event in events:
            lines(event)
            board(event)
        lines.close()
        board.close()
    found = scalars(tmp_path)
    assert found["train/loss"] == [(8, math.inf)]
    assert found["train/images_per_second"] == [(8, 50.0)]
    assert found["val/accuracy"] == [(8, 0.5)]
    assert found["sparsity/conv"] == [(8, pytest.approx(0.7))]


def check_curves(run, evaluated):
    """Require the steps of metrics.jsonl, each once, and one point at the end for what the end measures."""
    assert [row["step"] for row in rows(run, "eval")] == evaluated
    logged = [row["step"] for row in rows(run, "train")]
    wanted = {"train": logged, "val": evaluated, "sparsity": evaluated}
    for tag, points in scalars(run).items():
        assert [step for step, _ in points] == wanted.get(tag.partition("/")[0], evaluated[-1:]), tag


@pytest.mark.slow
def test_curves_are_those_of_metrics_jsonl_whatever_ended_an_attempt(train, ended_at, killed_at, tmp_path):
    """An evaluation that a signal cuts short is not in the checkpoint of its own step."""
    run = tmp_path / "run"
    ramp = ("pruning.target=0.7", "pruning.start_step=2", "pruning.end_step=10", "checkpoint.interval=1")
    begun = (*OURS, *ramp, "logger=[console,tensorboard,ending]", "epochs=4", "hydra.run.dir=run")
    assert train(*begun, *ended_at("Logged", 8, signal.SIGTERM)).code == 128 + signal.SIGTERM
    assert "val/loss" not in scalars(run)
    for step in (8, 16):
        killed_at(step, "resume=run")
        assert [step for step, _ in scalars(run)["val/loss"]][-1] == step
    assert train("resume=run", *ended_at("EvalEnd", 0, signal.SIGKILL)).code == 0
    check_curves(run, [8, 16, 24, 32])
    layers = {tag for tag in scalars(run) if tag.startswith("sparsity/")}
    assert layers == {f"sparsity/{name}" for name in rows(run, "eval")[-1]["layers"]}


def test_curves_are_those_of_metrics_jsonl_after_a_loss_that_is_not_finite(train, tmp_path):
    run = tmp_path / "run"
    dense = ("optimizer=sgd", "pruning.target=0", "checkpoint.interval=1")
    assert train(*OURS, *dense, "epochs=2", "hydra.run.dir=run").code == 0
    failed = train("resume=run", "epochs=4", "optimizer.lr=1e30")
    assert "not finite" in failed.err
    assert [tag for tag in scalars(run) if tag.startswith("end/")]
    early = run / "checkpoints" / "training" / "checkpoint_epoch_0001_step_00000008.pt"
    assert train(f"resume={early}", "epochs=3", "optimizer.lr=0.01").code == 0
    check_curves(run, [8, 16, 24])


def table(folder):
    """The rows of HPARAMS, as TensorBoard's own plugin shows them: by name (settings, numbers, status)."""
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(folder)))
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=api_pb2.Status.values(), start_index=0, slice_size=100
    )
    shown = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    assert all(len(group.sessions) == 1 for group in shown)
    return {
        group.name: (
            {key: getattr(value, value.WhichOneof("kind")) for key, value in group.hparams.items()},
            {metric.name.tag: metric.value for metric in group.metric_values},
            api_pb2.Status.Name(group.sessions[0].status),
        )
        for group in shown
    }


def test_a_sweep_has_a_row_for_each_job_with_the_numbers_of_its_table(train, tmp_path):
    done = train(*OURS, "epochs=1", "pruning.target=0", "-m", "hydra.sweep.dir=sweep",
                 "optimizer=sgd,adamw", "optimizer.lr=0.01")  # fmt: skip
    assert done.code == 0, done.err
    found = table(tmp_path / "sweep")
    assert set(found) == {"0/tensorboard", "1/tensorboard"}
    for job, optimizer in enumerate(("sgd", "adamw")):
        settings, numbers, state = found[f"{job}/tensorboard"]
        assert state == "STATUS_SUCCESS"
        assert (settings["optimizer.name"], settings["optimizer.lr"], settings["epochs"]) == (
            optimizer,
            0.01,
            1,
        )
        assert settings["model.dropout"] == pytest.approx(0.3)
        assert ("optimizer.momentum" in settings) == (optimizer == "sgd")
        result = read_result(tmp_path / "sweep" / str(job))
        expected = {
            "end/best_accuracy": result.overall.best,
            "end/final_accuracy": result.final,
            "end/test_accuracy": result.test,
            "end/sparsity": result.sparsity,
        }
        assert {tag: value for tag, value in numbers.items() if tag.startswith("end/")} == pytest.approx(
            expected
        )
        assert not [key for key in settings if key.startswith(("logger", "checkpoint.mirror"))]
    # TensorBoard shows the first five numbers at first.
    assert sorted(numbers)[:4] == sorted(expected)


def test_a_resumed_run_has_one_row_with_its_last_settings_and_numbers(train, tmp_path):
    words = (
        "epochs=1",
        "pruning.target=0.5",
        "pruning.end_epoch=1",
        "pruning.frequency=1",
        "hydra.run.dir=run",
    )
    assert train(*OURS, *words).code == 0
    (_, before, _) = table(tmp_path / "run")["tensorboard"]
    assert train("resume=run", "epochs=2").code == 0
    assert len(list((tmp_path / "run" / "tensorboard").glob(hparams.FILE))) == 1
    ((settings, numbers, state),) = table(tmp_path / "run").values()
    assert (settings["epochs"], state) == (2, "STATUS_SUCCESS")
    result = read_result(tmp_path / "run")
    assert numbers["end/best_at_target_accuracy"] == pytest.approx(result.at_target.best)
    assert numbers["end/final_accuracy"] == pytest.approx(result.final)
    assert [step for step, _ in scalars(tmp_path / "run")["end/final_accuracy"]] == [16]
    assert set(before) == set(numbers)


@pytest.mark.parametrize(
    ("event", "state"), [("interrupted", "STATUS_UNKNOWN"), ("failed", "STATUS_FAILURE")]
)
def test_a_run_that_did_not_finish_has_a_row_with_what_is_known(tmp_path, event, state):
    board = TensorBoard(tmp_path, 0, {"seed": 3, "max_steps": None, "flip": True})
    board(Logged(1, 3, 2.0, 0.001, 100.0))
    if event == "interrupted":
        board(Interrupted(1, 4, 15))
    board.close()
    ((settings, numbers, shown),) = table(tmp_path).values()
    assert (settings, shown) == ({"seed": 3, "flip": True}, state)
    assert numbers["train/loss"] == 2.0
