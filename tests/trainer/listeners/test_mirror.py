"""checkpoint.mirror through the whole program: it neither holds training up nor ends it."""

import os
import subprocess
import sys

import pytest

from peakpoint.checkpointing.remote.client import Remote
from peakpoint.checkpointing.remote.layout import newest_record, read_index
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.manifest import MILESTONE
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import ROOT, TINY, status
from tests.remotes import Fault, kill_at_a_request


def mirrored(run, url):
    """The milestones of a run here, and those that count as copied, by file and digest."""
    here = {m.file: m.digest for m in listing.manifests(run / "checkpoints") if m.tier == MILESTONE}
    place = Remote(url, timeout_s=5).below(listing.manifests(run / "checkpoints")[0].run)
    found, bad = read_index(place, place.find("checkpoints"))
    assert not bad
    for m in found.values():
        place.verify(f"checkpoints/{m.file}", m.digest, m.bytes)
    return here, {file: m.digest for file, m in found.items()}, place


def test_what_the_run_keeps_is_there_when_it_ends(train, s3, tmp_path):
    done = train(*TINY, f"checkpoint.mirror.url={s3.url}/runs", "hydra.run.dir=run")
    assert done.code == 0, done.err
    here, there, place = mirrored(tmp_path / "run", f"{s3.url}/runs")
    assert here == there
    assert f"copies of milestone go to {place.url}" in done.out
    _, record = newest_record(place)
    for name in ("run.json", "status.json", "metrics.jsonl", ".hydra/config.yaml", ".hydra/overrides.yaml"):
        assert record[name] == (tmp_path / "run" / name).read_text()
    assert '"finished"' in record["status.json"]


@pytest.mark.parametrize("kind", ["hang", "drop", "lie"])
def test_training_finishes_though_nothing_can_be_copied(train, s3, tmp_path, kind):
    s3.proxy.faults = [Fault(kind, times=10**6)]
    done = train(
        *TINY,
        f"checkpoint.mirror.url={s3.url}/runs",
        "checkpoint.mirror.wait_s=1",
        "checkpoint.mirror.timeout_s=1",
        "hydra.run.dir=run",
    )
    assert done.code == 0, done.err
    state = status(tmp_path / "run")
    assert (state["state"], state["step"]) == ("finished", 24)
    assert done.out.count("Training continues; the upload is repeated.") <= 1  # it may be over sooner
    last = done.out.strip().splitlines()[-1]
    assert last.startswith("The mirror is not complete: milestone/")
    assert last.endswith(f"peakpoint push {tmp_path / 'run'} {s3.url}/runs")


def test_a_process_ends_though_the_server_never_answers(s3, tmp_path):
    s3.proxy.faults = [Fault("hang", times=10**6)]
    done = subprocess.run(
        [
            *(
                sys.executable,
                str(ROOT / "train.py"),
                *TINY,
                "hydra.run.dir=run",
                "checkpoint.mirror.wait_s=0",
            ),
            *(f"checkpoint.mirror.url={s3.url}/runs", "checkpoint.mirror.timeout_s=600"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "The mirror is not complete" in done.stdout


def test_killed_in_an_upload_and_started_again_everything_arrives(train, s3, tmp_path):
    s3.proxy.faults = [Fault("hang", b".pt", times=1)]
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "train.py"), *TINY, "epochs=40", "hydra.run.dir=run"),
            f"checkpoint.mirror.url={s3.url}/runs",
        ],
        cwd=tmp_path,
        env=dict(os.environ),
        stdout=subprocess.DEVNULL,
    )
    kill_at_a_request(process, s3.proxy, b".pt")
    run = tmp_path / "run"
    assert status(run)["state"] == "running"
    staged = (run / "checkpoints" / "milestone").glob(".staged-*")
    links = [path for path in staged if path.stat().st_nlink > 1]  # others are of a save cut short
    here, there, _ = mirrored(run, f"{s3.url}/runs")
    assert len(links) == 1
    assert here
    assert not there
    done = train("resume=run", f"checkpoint.mirror.url={s3.url}/runs")
    assert done.code == 0, done.err
    here, there, _ = mirrored(run, f"{s3.url}/runs")
    assert here == there
    assert len(here) > 3
    assert not list((run / "checkpoints" / "milestone").glob(".staged-*"))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("checkpoint.mirror.url=foo://x/y", "checkpoint.mirror.url=foo://x/y: fsspec knows no protocol foo"),
        ("checkpoint.mirror.url=/abs", "checkpoint.mirror.url=/abs is not a URL such as s3://bucket/folder"),
        ("checkpoint.mirror.url=ftp://me:hunter22@h/x", "holds a password"),
        ("checkpoint.mirror.keep=0", "checkpoint.mirror.keep=0 is out of range"),
        ("checkpoint.mirror.queue=0", "checkpoint.mirror.queue=0 is out of range"),
        ("checkpoint.mirror.wait_s=-1", "checkpoint.mirror.wait_s=-1"),
        ("checkpoint.mirror.timeout_s=0", "checkpoint.mirror.timeout_s=0"),
        (
            "checkpoint.mirror.what=[best_acuracy]",
            "best_acuracy is no tier, role or policy of this run: did you mean best_accuracy?",
        ),
    ],
)
def test_wrong_settings_are_one_line_before_training(train, tmp_path, override, says):
    done = train(*TINY, override, "hydra.run.dir=run")
    assert done.code == 1
    assert says in done.err
    assert done.err.count("\n") == 1
    assert "hunter22" not in done.err
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("", "lie one within the other: choose another place"),
        ("/run/mirror", "lie one within the other: choose another place"),
        ("/run/checkpoints", "lie one within the other: choose another place"),
        ("/other/checkpoints", "lies among the checkpoints under"),
    ],
)
def test_a_mirror_lies_apart_from_runs(train, tmp_path, place, says):
    Store(tmp_path / "other" / "checkpoints", "run").save(
        [manifest("training/a.pt")], lambda f: f.write(b"x")
    )
    done = train(*TINY, f"checkpoint.mirror.url=file://{tmp_path}{place}", "hydra.run.dir=run")
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert says in done.err
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("mode", [[], ["-m", "seed=1,2"]])
@pytest.mark.parametrize(
    "argument",
    [
        "checkpoint.mirror.url=s3://AKIAXY:hunter22@bucket/x",
        "checkpoint.mirror.url=s3://AKIAXY:a/b+hunter22@bucket/x",
        "checkpoint={mirror: {url: 's3://AKIAXY:hunter22@bucket/x'}}",
        "resume=s3://AKIAXY:hunter22@bucket/x",
    ],
)
def test_a_password_is_refused_before_anything_is_written(train, tmp_path, mode, argument):
    done = train(*mode, *TINY, argument)
    assert done.code == 1
    assert "holds a password, which would be written down" in done.err
    assert "as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.err
    assert "hunter22" not in done.out + done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [[], ["-m", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize("where", ["local", "experiment", "hydra"])
def test_a_password_in_a_file_of_the_configuration_is_refused_before_anything_is_written(
    train, tmp_path, monkeypatch, mode, where
):
    url = "'s3://AKIAXY:hunter22@bucket/x'"
    setting = f"hydra: {{job: {{env_set: {{A: {url}}}}}}}" if where == "hydra" else f"data: {{root: {url}}}"
    file = tmp_path / "mine" / ("experiment" if where == "experiment" else "local") / "default.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(f"# @package _global_\n{setting}\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    chosen = ["experiment=default"] * (where == "experiment")
    done = train(*mode, *TINY, "--config-dir=../mine", *chosen)
    assert done.code == 1
    assert "holds a password, which would be written down" in done.err
    assert done.err.count("\n") == 1
    assert "hunter22" not in done.out + done.err
    assert list(tmp_path.glob("here/*")) == []


def test_no_file_of_a_sweep_holds_a_password_that_one_job_or_the_environment_brings(
    train, tmp_path, monkeypatch
):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "a.yaml").write_text(
        "# @package _global_\ndata: {root: 's3://AKIAXY:hunter22@bucket/x'}\n"
    )
    (tmp_path / "mine" / "experiment" / "b.yaml").write_text(
        "# @package _global_\ncheckpoint: {mirror: {url: '${oc.env:PLACE}'}}\n"
    )
    monkeypatch.setenv("PLACE", "s3://AKIAXY:hunter22@bucket/x")
    sweep = ("-m", *TINY, "--config-dir=mine", "hydra.sweep.dir=sweep", "max_steps=1")
    for jobs in ("experiment=a,b", "experiment=b"):
        done = train(*sweep, jobs)
        assert done.code == 1
        assert done.err.count("holds a password, which would be written down") == 1
        assert "hunter22" not in done.out + done.err
        assert (tmp_path / "sweep").exists() == (jobs == "experiment=b")
    written = [path for path in tmp_path.glob("sweep/**/*") if path.is_file()]
    assert {path.name for path in written} >= {"multirun.yaml", "status.json", "train.log"}
    assert not [path for path in written if b"hunter22" in path.read_bytes()]
