"""The entry: what a person types, and what is left behind."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from peakpoint.checkpointing.storage import listing
from tests.conftest import ROOT, TINY, command, rows, status
from tests.faults.fault_cases import mounted
from tests.states import differences, load_newest, newest

WRONG = [
    (["optimizer.lrr=0.1"], "optimizer.lrr is not a key of this configuration: did you mean optimizer.lr?"),
    (["optimizer=adamm"], "optimizer=adamm is not a choice: did you mean adam?"),
    (["epochs=0"], "epochs=0 is out of range: it must be at least 1."),
    (["checkpoint.when_busy=drop"], "checkpoint.when_busy=drop is not a choice; there are: skip, wait."),
    (["+checkpoint.mirror_keep=2"], "checkpoint.mirror_keep is set as checkpoint.mirror.keep: type"),
    (["+epoch=3"], "epoch is not a key of this configuration: did you mean epochs?"),
    (["pruning=none", "pruning.target=0.5"], "pruning=none trains dense, but pruning.target=0.5"),
    (["optimizer=sgd", "pruning=state"], "pruning.criterion=bitter7 scores weights by exp_avg_sq, which"),
    (["grad_accumulation=3"], "batch_size=16 must be a multiple of grad_accumulation=3"),
    (["checkpoint.monitor.metric=acc"], "checkpoint.monitor: acc is not measured: did you mean accuracy?"),
    (["checkpoint.policy.top_k.k=0"], "checkpoint.policy.top_k.k=0 is out of range"),
    (["checkpoint/policy=[bset]"], "checkpoint/policy=bset is not a choice: did you mean best?"),
    (["batch_size=4096"], "4096"),
    (["resume=outputs/nothing"], "resume=outputs/nothing: there is no such file or directory"),
    (["resume=latest"], "resume=latest finds no run"),
    (["-m", "resume=run"], "resume= goes on with one run"),
    (["reproduce=latest"], "reproduce=latest finds no run"),
    (["reproduce=nothing"], "reproduce=nothing: there is no such file or directory"),
    (["model=null"], "model=null is not a choice; there are: "),
    (["optimizer.name=sgd"], "optimizer.name=sgd cannot be set"),
    (["hydra.output_subdir=x"], "hydra.output_subdir=x cannot be set"),
    (["hydra/job_logging=default"], "hydra.job_logging.handlers.file opens a file"),
    (["plugins=[no_such_module]"], "plugins: no_such_module cannot be imported"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_wrong_input_is_one_clear_line(train, arguments, sentence):
    err = train(*TINY, *arguments).refusal()
    assert sentence in err
    assert err.startswith("error: ")


def test_a_run_leaves_its_record(whole_run):
    record = json.loads((whole_run / "run.json").read_text())
    assert record["config"]["optimizer"]["name"] == "adamwprune"
    assert record["config"]["pruning"]["criterion"] == "bitter7"
    assert record["seed"] == 0
    assert set(record["data"]) >= {"train_sha256"} or any("sha256" in key for key in record["data"])
    assert {"packages", "hardware", "python", "git_commit", "git_diff"} <= set(record)
    assert record["attempts"][0]["overrides"][: len(TINY)] == list(TINY)
    assert status(whole_run)["state"] == "finished"
    assert (whole_run / ".hydra" / "config.yaml").exists()
    assert "epoch 3 step 24 validation: accuracy" in (whole_run / "train.log").read_text()
    assert [r["epoch"] for r in rows(whole_run, "eval")] == [1, 2, 3]
    assert {r["which"] for r in rows(whole_run, "test")} == {"selected", "final"}


def test_the_test_set_is_left_alone_with_test_false(train, tmp_path):
    train(
        *TINY, "test=false", "epochs=1", "data.test_size=1000000000", f"hydra.run.dir={tmp_path / 'run'}"
    ).succeeded()
    assert rows(tmp_path / "run", "test") == []
    assert status(tmp_path / "run")["state"] == "finished"


def test_the_end_reports_peak_against_final_and_where_the_files_are(train, tmp_path):
    done = train(*TINY, "hydra.run.dir=run").succeeded()
    for word in ("best epoch", "degradation", "overall", "sparsity >= 0.70", "selected", "final"):
        assert word in done.out
    for manifest in listing.manifests(tmp_path / "run" / "checkpoints"):
        assert manifest.file in done.out


def test_a_checkpoint_holds_what_the_guide_lists(whole_run):
    state = load_newest(whole_run)
    guide = (
        "version checkpoint_type timestamp git_commit model_state_dict optimizer_state_dict "
        "scheduler_state_dict epoch global_step metrics config metadata rng_state"
    )
    assert set(guide.split()) <= set(state)
    assert state["epoch"] == 3
    assert state["global_step"] == 24
    assert state["metrics"].keys() >= {"accuracy", "loss", "top5_accuracy", "f1_score"}


def test_the_sparsity_of_the_saved_weights_is_the_target(whole_run):
    weights = load_newest(whole_run)["model_state_dict"]
    prunable = [w for name, w in weights.items() if w.dim() > 1 and name.endswith("weight")]
    zeros = sum(int((w == 0).sum()) for w in prunable)
    total = sum(w.numel() for w in prunable)
    assert zeros == pytest.approx(0.7 * total, abs=1.01)
    assert newest(whole_run).sparsity == zeros / total


@pytest.mark.slow
def test_resumed_from_any_step_it_ends_bit_for_bit_the_same(whole_run, train, tmp_path):
    """Every step of every epoch: before and after evaluations, in mid-ramp, with dropout and augmentation."""
    root = whole_run / "checkpoints"
    files = [m for m in listing.manifests(root) if m.tier == "training" and m.global_step < 24]
    assert len({m.global_step for m in files}) == 23
    whole = load_newest(whole_run)
    for manifest in files:
        train(f"resume={root / manifest.file}", f"hydra.run.dir=from-{manifest.sequence}").succeeded()
        fork = tmp_path / f"from-{manifest.sequence}"
        assert differences(whole, load_newest(fork)) == [], manifest.file
        assert rows(fork, "eval") == rows(whole_run, "eval")[-len(rows(fork, "eval")) :]


@pytest.mark.slow
def test_killed_twice_in_an_epoch_it_ends_bit_for_bit_the_same(whole_run, tmp_path):
    """SIGKILL as soon as a checkpoint of a step is there, in real processes, resumed in place."""
    run = tmp_path / "a run"  # with a space: a resumed command line must quote it
    arguments = [*TINY, "checkpoint.interval_steps=1", "checkpoint.keep_last=100", f"hydra.run.dir='{run}'"]
    for stop_at in (10, 13):
        victim = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        wanted = run / "checkpoints" / "training" / f"checkpoint_epoch_0002_step_{stop_at:08d}.json"
        deadline = time.monotonic() + 120
        while not wanted.exists() and victim.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert wanted.exists()
        assert status(run)["state"] == "running"
        arguments = [f"resume={run}"]
    done = command(f"resume={run}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert differences(load_newest(whole_run), load_newest(run)) == []
    for kind in ("train", "eval"):
        assert rows(run, kind) == rows(whole_run, kind)
    attempts = json.loads((run / "run.json").read_text())["attempts"]
    assert [a["number"] for a in attempts] == [1, 2, 3]
    assert (run / ".hydra" / "resume-002" / "config.yaml").exists()


def test_drift_in_conf_is_refused_unless_accepted(train, tmp_path):
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0
    saved = tmp_path / "run" / ".hydra" / "config.yaml"
    saved.write_text(saved.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.1"))
    err = train("resume=run", "epochs=2").refusal()
    assert "label_smoothing was 0.1 and is 0.0 now, and the command does not name it" in err
    assert train("resume=run", "epochs=2", "accept_drift=true").code == 0


def test_a_damaged_newest_checkpoint_is_quarantined_and_the_one_before_used(train, tmp_path):
    assert train(*TINY, "epochs=2", "checkpoint.interval=1", "hydra.run.dir=run").code == 0
    root = tmp_path / "run" / "checkpoints"
    last = newest(tmp_path / "run")
    path = root / last.file
    data = bytearray(path.read_bytes())
    path.unlink()  # the bytes may be shared with a milestone, which stays whole
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = train("resume=run", "epochs=3").succeeded()
    assert f"{last.file} is damaged, so an older one is used" in done.out
    assert f"moved to quarantine: {last.file}" in done.out
    assert [p.read_bytes() for p in (root / "quarantine").glob("*.pt")] == [bytes(data)]
    assert newest(tmp_path / "run").epoch == 3


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again_over_its_record(train, tmp_path):
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    err = train("resume=run", "epochs=2").refusal()
    assert "The run has saved checkpoints, and none is left under" in err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.root
def test_a_run_that_can_only_be_read_is_refused_in_one_line(train, tmp_path, whole_run):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run, symlinks=True)
    with mounted(tmp_path / "view", f"--bind {run}") as view:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(view)], check=True)
        done = train(f"resume={view}", "epochs=9")
    assert done.code == 1
    assert re.fullmatch(rf"error: {view} cannot be written to: Read-only file system.*\.\n", done.err)


def test_a_sweep_goes_on_past_a_failed_job_and_ends_with_a_table(train, tmp_path):
    done = train(
        "-m", *TINY, "epochs=1", "optimizer=adamwprune,sgd", "device=cpu,cuda", "hydra.sweep.dir=sweep"
    ).failed()
    states = {p.parent.name: json.loads(p.read_text())["state"] for p in tmp_path.glob("sweep/*/status.json")}
    assert sorted(states.values()) == ["failed", "failed", "finished", "finished"]
    failed = next(job for job, state in states.items() if state == "failed")
    assert done.err.count("error: ") == 2
    assert "Traceback" not in done.err
    assert "failed: " in (tmp_path / "sweep" / failed / "train.log").read_text()
    for word in ("overrides", "optimizer=sgd", "finished", "failed"):
        assert word in done.out


def test_help_answers_without_torch(tmp_path):
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "optimizer: adam, adamw, adamwprune, adamwspam, sgd" in done.stdout
    assert "schema" not in done.stdout


def test_grey_images_of_28_pixels_train_a_resnet20(train, tmp_path):
    """Channels, size and classes of the network follow the data."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.kron(digits.images * 15, np.ones((3, 3))).astype(np.uint8)
    images = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    for split, part in (("train", slice(400)), ("test", slice(400, 500))):
        np.savez(tmp_path / f"{split}.npz", images=images[part], labels=digits.target[part])
    size = ["epochs=1", "batch_size=60", "logger=[console]", "threads=1", "optimizer=sgd"]
    train("model=resnet20", "data=npz", f"data.root={tmp_path}", *size, "hydra.run.dir=run").succeeded()
    weights = load_newest(tmp_path / "run")["model_state_dict"]
    assert images.shape[1:] == (28, 28)
    assert next(w.shape[1] for w in weights.values() if w.dim() == 4) == 1
    assert next(reversed(weights.values())).shape == (10,)


@pytest.mark.parametrize("end", [[], ["max_steps=16"], ["max_steps=12"]], ids=["epochs", "max_steps", "mid"])
def test_a_moment_is_saved_once_whatever_the_rhythm(train, tmp_path, end):
    rhythm = ("checkpoint.interval=1", "checkpoint.interval_steps=8", "checkpoint.keep_last=3")
    assert train(*TINY, *rhythm, *end, "hydra.run.dir=run").code == 0
    training = [m for m in listing.manifests(tmp_path / "run" / "checkpoints") if m.tier == "training"]
    steps = [m.global_step for m in training]
    assert steps == sorted(set(steps))
    assert steps == {"max_steps=16": [8, 16], "max_steps=12": [8, 12]}.get("".join(end), [8, 16, 24])
    written = [row for row in rows(tmp_path / "run", "save") if "training" in row["file"]]
    assert len(written) == len(steps)
    assert {"interval"} == {tag for m in training[:-1] for tag in m.tags}


def test_a_checkpoint_of_an_evaluation_within_an_epoch_resumes_exactly(train, tmp_path):
    """Step 12 is such an evaluation, in the middle of the second epoch; the tables name the step."""
    run, fork = tmp_path / "run", tmp_path / "fork"
    chosen = (
        "eval_every_steps=4",
        "checkpoint.interval_steps=12",
        "checkpoint.keep_last=9",
        "optimizer.lr=0.01",
    )
    first = train(*TINY, *chosen, f"hydra.run.dir={run}").succeeded()
    assert [row["step"] for row in rows(run, "eval")] == [4, 8, 12, 16, 20, 24]
    assert "validation" in first.out
    assert ", step " in first.out
    file = run / "checkpoints" / "training" / "checkpoint_epoch_0002_step_00000012.pt"
    train(f"resume={file}", f"hydra.run.dir={fork}").succeeded()
    assert rows(fork, "eval") == rows(run, "eval")[3:]
    assert differences(load_newest(run)["model_state_dict"], load_newest(fork)["model_state_dict"]) == []


def test_what_fails_in_an_evaluation_costs_no_step(train, tmp_path, monkeypatch):
    """The last step of an epoch waits for its evaluation; a failed one does not take it along."""
    from peakpoint.trainer.loop import Loop

    def out_of_memory(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Loop, "evaluate", out_of_memory)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(*TINY, "checkpoint.interval_steps=8", "hydra.run.dir=run")
    assert newest(tmp_path / "run").global_step == 8
