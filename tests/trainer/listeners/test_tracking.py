"""The real packages of Weights & Biases and MLflow, offline: what they hold of a resumed run."""

import json
import signal
import struct
import sys

import pytest

from tests.conftest import TINY, process, rows, status

OURS = [word for word in TINY if not word.startswith("logger")]
RUN = "hydra.run.dir=run"
MLFLOW = "logger=[console,mlflow]"
WANDB = "logger=[console,wandb]"
EPOCH = 8
"""Steps of an epoch of TINY."""
BLOCK = 32768


def curve(run, kind, name):
    """The steps and values in metrics.jsonl after the first epoch, which was repeated in part."""
    found = [row for row in rows(run, kind) if row["epoch"] > 1]
    return [(row["step"], row["metrics"][name] if kind == "eval" else row[name]) for row in found]


def in_order(points):
    """Require that no step is there twice; returns the points after the first epoch."""
    steps = [step for step, _ in points]
    assert steps == sorted(set(steps))
    assert steps[0] <= EPOCH
    return [(step, value) for step, value in points if step > EPOCH]


def of_mlflow(folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("peakpoint").experiment_id])
    return run, lambda name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def test_mlflow_has_one_run_of_an_interrupted_and_resumed_training(train, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("A_TOKEN", "a-secret-of-mine")
    named = "logger.mlflow.name=of ${oc.env:A_TOKEN}"
    done = train(*OURS, MLFLOW, named, "epochs=1", "checkpoint.interval_steps=5", RUN)
    assert (done.code, done.err) == (0, "")
    run, history = of_mlflow(tmp_path)
    assert (run.info.status, run.data.params["epochs"]) == ("FINISHED", "1")
    assert run.data.params["logger.mlflow.name"] == "of ***"
    found = next((tmp_path / "run" / "checkpoints" / "training").glob("*step_00000005.pt"))
    done = train(f"resume={found}", named, "epochs=2")
    assert (done.code, done.err) == (0, "")
    run, history = of_mlflow(tmp_path)
    assert (run.data.params["epochs"], run.data.tags["resumed_with.epochs"]) == ("1", "2")
    assert in_order(history("train/loss")) == curve(tmp_path / "run", "train", "loss")
    assert in_order(history("val/accuracy")) == curve(tmp_path / "run", "eval", "accuracy")
    assert {"train/lr", "val/sparsity", "test_final/accuracy"} <= set(run.data.metrics)
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_killed_run_goes_on_as_the_same_run_in_both_tools(train, ended_at, killed_at, tmp_path):
    """It is killed at step 16, of which it has no checkpoint, before wandb has written anything."""
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    # MLflow keeps a store by its URI, and other tests of this process have one in mlflow.db.
    store = f"logger.mlflow.tracking_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    killed_at(16, *OURS, "logger=[wandb,mlflow,ending]", store, "epochs=4", "checkpoint.interval=1", RUN)
    found, history = of_mlflow(tmp_path)
    assert (found.info.status, history("val/loss")[-1][0]) == ("RUNNING", 16)
    done = train("resume=run", store, *ended_at("EvalEnd", 24, signal.SIGTERM))
    assert done.code == 128 + signal.SIGTERM, done.err
    assert of_mlflow(tmp_path)[0].info.status == "KILLED"
    assert train("resume=run", store, "epochs=5", *ended_at("EvalEnd", 0, signal.SIGTERM)).code == 0
    found, history = of_mlflow(tmp_path)
    assert found.info.status == "FINISHED"
    for name in found.data.metrics:
        steps = [step for step, _ in history(name)]
        assert steps == sorted(set(steps)), name
    steps = [row["step"] for row in rows(run, "train")]
    assert [step for step, _ in history("train/loss")] == steps
    assert [step for step, _ in history("val/loss")] == [8, 16, 24, 32, 40]
    ident = json.loads((run / "run.json").read_text())["run"]
    fragments = sorted((run / "wandb").glob(f"offline-run-*-{ident}*/run-{ident}.wandb"))
    sent = [(step, values) for file in fragments for step, values in of_wandb(file)[0].items()]
    assert len(fragments) == 3
    assert [step for step, _ in sent] == steps
    assert [step for step, values in sent if "val/loss" in values] == [8, 16, 24, 32, 40]


FAULTS = {
    "mlflow at the start": ("mlflow", "mlflow.tracking.MlflowClient.create_run"),
    "mlflow in mid-run": ("mlflow", "mlflow.tracking.MlflowClient.log_batch"),
    "mlflow at the end": ("mlflow", "mlflow.tracking.MlflowClient.set_terminated"),
    "wandb at the start": ("wandb", "wandb.init"),
    "wandb in mid-run": ("wandb", "wandb.Run.log"),
    "wandb at the end": ("wandb", "wandb.Run.finish"),
}


@pytest.mark.parametrize(("name", "broken"), FAULTS.values(), ids=FAULTS)
def test_a_package_that_raises_is_one_line_and_training_goes_on(train, tmp_path, monkeypatch, name, broken):
    """Where a package fails in mid-run, its end fails too."""
    pytest.importorskip(name)

    def fails(*_args, **_settings):
        raise RuntimeError("the tool is ill")

    ends = {"mlflow": "mlflow.tracking.MlflowClient.set_terminated", "wandb": "wandb.Run.finish"}
    for place in {broken, ends[name]}:
        monkeypatch.setattr(place, fails)
    done = train(*OURS, f"logger=[console,{name}]", "max_steps=6", RUN)
    assert (done.code, done.err) == (0, "")
    assert done.out.count("the tool is ill") == 1
    assert status(tmp_path / "run")["state"] == "finished"
    assert len(status(tmp_path / "run")["notes"]) == 1


def test_a_store_that_fails_leaves_the_run_alone(train, tmp_path):
    pytest.importorskip("mlflow")
    (tmp_path / "other.db").write_text("no database of anybody's")
    done = train(*OURS, MLFLOW, "logger.mlflow.tracking_uri=sqlite:///other.db", "epochs=1", RUN)
    assert done.code == 0, done.err
    assert status(tmp_path / "run")["state"] == "finished"
    assert done.out.count("logger.mlflow failed and is left out from here on") == 1
    assert not (tmp_path / "run" / "mlflow.json").exists()


def logged(content):
    """The records of a log in LevelDB's format, which begins with a header of 7 bytes."""
    at, whole = 7, b""
    while at < len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def of_wandb(file):
    """The rows by step, and the last summary, of a file that an offline run has written."""
    from wandb.proto import wandb_internal_pb2 as proto

    history, summary, config = {}, {}, {}
    for content in logged(file.read_bytes()):
        record = proto.Record()
        record.ParseFromString(content)
        for item in record.history.item:
            values = history.setdefault(record.history.step.num, {})
            values["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        summary |= {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json)
            for item in record.summary.update
        }
        config |= {item.key: json.loads(item.value_json) for item in record.config.update}
    return history, summary, config


def test_wandb_writes_one_run_offline_whose_steps_are_not_repeated(train, tmp_path):
    pytest.importorskip("wandb")
    done = train(*OURS, WANDB, "epochs=1", "checkpoint.interval_steps=5", RUN)
    assert (done.code, done.err) == (0, "")
    run = json.loads((tmp_path / "run" / "run.json").read_text())["run"]
    (first,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{run}*/run-{run}.wandb")
    history, summary, config = of_wandb(first)
    assert (summary["state"], config["epochs"]) == ("finished", 1)
    found = next((tmp_path / "run" / "checkpoints" / "training").glob("*step_00000005.pt"))
    done = train(f"resume={found}", "epochs=2")
    assert (done.code, done.err) == (0, "")
    files = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{run}*/run-{run}.wandb")
    (second,) = set(files) - {first}
    more, summary, config = of_wandb(second)
    assert not set(history) & set(more)
    assert config["epochs"] == 2
    whole = history | more
    losses = [(step, values["train/loss"]) for step, values in whole.items() if "train/loss" in values]
    assert in_order(losses) == curve(tmp_path / "run", "train", "loss")
    scores = [(step, values["val/accuracy"]) for step, values in whole.items() if "val/accuracy" in values]
    assert in_order(scores) == curve(tmp_path / "run", "eval", "accuracy")
    names = {name for values in more.values() for name in values} | set(summary)
    assert {"test_final/accuracy", "val/sparsity", "train/lr"} <= names


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb.sdk"), ("mlflow", "mlflow.tracking")])
def test_a_missing_package_is_one_line_that_names_the_extra(train, tmp_path, monkeypatch, name, package):
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    done = train(*OURS, f"logger=[{name}]", RUN)
    expected = f"error: logger={name} needs {package}: pip install 'peakpoint[{name}]'.\n"
    assert (done.code, done.err) == (1, expected)
    assert list(tmp_path.iterdir()) == []


def test_a_tool_that_is_not_chosen_is_not_imported():
    code = (
        "import sys\n"
        "from peakpoint.trainer.config import choices\n"
        "assert 'logger: console, mlflow, tensorboard, wandb' in choices.all_choices()\n"
        "sys.exit('wandb' in sys.modules or 'mlflow' in sys.modules or 'torch' in sys.modules)"
    )
    done = process("-c", code)
    assert done.returncode == 0, done.stderr
