"""What is taken of a recorded command line, for every command that composes from a record."""

import json
import shutil
import uuid
from pathlib import Path

import pytest

from peakpoint.base.errors import UserError
from peakpoint.trainer.config import recorded
from tests.conftest import ROOT, TINY, command, one_line

RUN = Path("run/run.json")


@pytest.mark.parametrize(
    "override",
    [
        *TINY,
        "experiment=demo",
        "experiment=folder/of_mine",
        "experiment=v1.2",
        "experiment=null",
        "~experiment",
        "+checkpoint/policy=top_k",
        "~checkpoint.policy.best",
        "checkpoint.policy={best: {keep: 3}}",
        "checkpoint.name='{model}_epoch{epoch}_acc{accuracy:.2f}'",
        "checkpoint.mirror.url=null",
        "data.root=/a/b c",
        'data.root="[ünï] a=b, c"',
        "data.root=",
        "optimizer.betas=[0.9,0.99]",
        "++optimizer.lr=1e-3",
        "seed=int(3.0)",
    ],
)
def test_choices_by_name_and_plain_values_are_taken(override):
    assert recorded.taken([override], RUN) == [override]


@pytest.mark.parametrize(
    "override",
    [
        "experiment=../../x",
        "experiment='../../x'",
        "experiment=/tmp/x",
        "experiment=..",
        "experiment=[demo,../x]",
        "model={name: x}@hydra",
        "+hydra.callbacks.e._target_=torch.load",
        "hydra={callbacks: {e: 1}}",
        "++hydra={run: {dir: x}}",
        "hydra/launcher=joblib",
        "hydra.searchpath=[file:///x]",
        "experiment@hydra=demo",
        "experiment@_global_=demo",
        "+model@hydra.callbacks=resnet50",
        "model._target_=x",
        "optimizer={_target_: x}",
        "$x=1",
        ".x=1",
        "--config-dir=x",
        "-m",
        "seed=1,2",
        "seed=range(1,5)",
        "experiment=glob(*)",
        "data.root=a\nb",
        "data.root=\x1b[31m",
        "data.root=" + "[" * 1000,
        "data.root=" + "x" * recorded.LONGEST,
        "nothing",
        5,
        None,
        ["epochs=1"],
    ],
)
def test_whatever_else_a_record_holds_is_refused(override):
    with one_line(UserError, match="which is not an override of a run") as refusal:
        recorded.taken(["epochs=1", override], RUN)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("plugins=[evil]", "'plugins=[evil]'"),
        ("+plugins=evil", "+plugins=evil"),
        ("plugins=[null]", "'plugins=[null]'"),
        ("optimizer.lr=${oc.env:TOKEN}", "'optimizer.lr=${oc.env:TOKEN}'"),
        ('data.root="x/${oc.env:TOKEN}"', "'data.root=\"x/${oc.env:TOKEN}\"'"),
        ("data={root: '${oc.env:TOKEN}'}", None),
        ("checkpoint.policy.best.metrics=[a,'${x}']", None),
        ("checkpoint.mirror.url=s3://bucket/x", "checkpoint.mirror.url=s3://bucket/x"),
        ("checkpoint={mirror: {url: 's3://bucket/x'}}", None),
        ("+checkpoint={mirror: {url: b}}", None),
    ],
)
def test_what_needs_the_users_word_says_what_to_add(override, typed):
    with pytest.raises(UserError, match="only at your word: add ") as refusal:
        recorded.taken(["epochs=1", override], RUN)
    assert recorded.needs_word(["epochs=1", override]) == [override]
    assert typed is None or f"add {typed} to the command." in str(refusal.value)


@pytest.mark.parametrize("empty", ["pruning.variant=", "++pruning.variant=''", "optimizer.variant=null"])
def test_an_empty_variant_of_an_earlier_version_is_left_out(empty):
    attempt = {"overrides": ["pruning.method=magnitude", empty, "data.root="]}
    assert recorded.overrides(attempt) == ["pruning=magnitude", "data.root="]


def test_a_record_of_too_many_overrides_is_refused():
    with pytest.raises(UserError, match="too many for a run"):
        recorded.taken(["epochs=1"] * (recorded.MOST + 1), RUN)


@pytest.fixture
def finished(whole_run, tmp_path):
    """A finished run whose record can be changed; what it holds that would run leaves `ran` behind."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run, symlinks=True)
    return run


def with_override(run, *overrides):
    record = json.loads((run / "run.json").read_text())
    record["attempts"][-1]["overrides"] += overrides
    (run / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("optimizer=of_mine", "optimizer=of_mine is not a choice; there are: "),
        ("pruning.criterion=of_mine", "pruning.criterion=of_mine is not a choice; there are: "),
    ],
)
def test_the_plugins_of_a_run_are_named_where_others_are_typed(train, finished, override, refusal):
    with_override(finished, "plugins=[mine]", override)
    done = train("resume=run", "epochs=4", "plugins=[json]")
    assert done.err.startswith(f"error: {refusal}")
    assert done.err.endswith(
        " The run used plugins=[mine], and this command does not: type 'plugins=[json,mine]'.\n"
    )
    assert done.err.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Callback FileHandler")
@pytest.mark.parametrize("hostile", ["experiment", "callback"])
def test_no_file_beside_a_run_is_executed_by_a_resume(train, finished, tmp_path, hostile):
    """Hydra's own list of forbidden targets lets logging.FileHandler through: it makes a file here."""
    ran = tmp_path / "ran"
    made = f"{{_target_: logging.FileHandler, filename: {ran}}}"
    evil = tmp_path / "x.yaml"
    evil.write_text(f"# @package _global_\nhydra:\n  callbacks:\n    e: {made}\n")
    up = "/".join([".."] * len((ROOT / "conf" / "experiment").parts))
    override = {
        "experiment": f"experiment={up}{evil.with_suffix('')}",
        "callback": f"+hydra.callbacks.e={made}",
    }[hostile]
    train(override, *TINY, "max_steps=1", "test=false")
    assert ran.exists()  # negative control: typed, it does
    ran.unlink()
    with_override(finished, override)
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    shutil.copytree(finished, tmp_path / "outputs" / "run", symlinks=True)
    for asked in ("run", "run/checkpoints/training/latest.pt", "latest"):
        for extra in ([], ["epochs=4"]):
            assert "which is not an override of a run" in train(f"resume={asked}", *extra).refusal()
    assert not ran.exists()


@pytest.mark.parametrize(
    "override", ["+hydra.callbacks.e._target_=os.abort", "experiment=../../x", "model=${oc.env:TOKEN}"]
)
def test_nor_by_the_proof_of_a_run(finished, override, tmp_path):
    with_override(finished, override)
    done = command("prove-resume", str(finished), cwd=tmp_path, module="peakpoint")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert "uninterrupted run" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_the_environment_holds_goes_nowhere_unasked(train, finished, tmp_path, monkeypatch):
    token = uuid.uuid4().hex
    monkeypatch.setenv("TOKEN", token)
    place = f"checkpoint.mirror.url=file://{tmp_path}/there"
    with_override(finished, "checkpoint.name='${oc.env:TOKEN}_{epoch}'", place)
    err = train("resume=run", "epochs=4").refusal()
    assert "add 'checkpoint.name='\"'\"'${oc.env:TOKEN}_{epoch}'\"'\"'' " in err
    assert f"{place} to the command" in err
    assert not (tmp_path / "there").exists()
    held = [p for p in tmp_path.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    assert held == []
    # Its owner says both again.
    monkeypatch.setenv("TOKEN", "mine")
    train("resume=run", "epochs=4", "checkpoint.name='${oc.env:TOKEN}_{epoch}'", place).succeeded()
    assert list((tmp_path / "there").rglob("mine_4*.pt"))
