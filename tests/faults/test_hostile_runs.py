"""A run of a stranger, in which one file is not what it should be: one line, and the rest is shown."""

import json
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peakpoint import load_model
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import archive, serialize
from peakpoint.checkpointing.state.packing import MARK
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands import dispatch as cli
from tests.states import newest

DEEP = 100_000
ALIASES = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{','.join(9 * [f'*{a}'])}]\n" for a, b in ["ab", "bc", "cd"]
)


@pytest.fixture
def tree(whole_run, tmp_path):
    """Two runs side by side; the first may be changed."""
    for name in ("first", "second"):
        shutil.copytree(whole_run, tmp_path / "outputs" / name, symlinks=True)
    return tmp_path / "outputs"


@pytest.fixture
def commands(capsys):
    """Run a command in this process: (exit code, stdout, stderr)."""

    def main(*arguments):
        code = cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        assert err.count("\n") <= 1
        return code, out, err

    return main


def mark(run):
    """The manifest of the newest checkpoint."""
    return (run / "checkpoints" / newest(run).file).with_suffix(".json")


def fifo(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def giant(path):
    with path.open("wb") as file:
        file.truncate(200 << 30)


def text(words):
    return lambda path: path.write_text(words)


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def resealed(**facts):
    def change(path):
        raw = json.loads(path.read_text())
        del raw["check"]
        path.write_text(sealed(json.dumps(raw | facts)))

    return change


LATER = resealed(format=99)


@pytest.mark.parametrize(
    "spoil",
    [
        fifo,
        giant,
        text("[" * DEEP),
        text("{}"),
        resealed(metadata="x"),
        resealed(reasons=[1]),
        resealed(metrics={"accuracy": 10**400}),
        resealed(bytes=10**400),
        resealed(tags=["../../../x"]),
        LATER,
    ],
)
def test_a_manifest_of_any_kind_is_one_line_of_a_tree(tree, commands, spoil):
    spoiled = mark(tree / "first")
    spoil(spoiled)
    code, out, err = commands("verify", tree)
    assert (code, err) == (1, "")
    word = "unreadable" if spoil is LATER else "bad"
    assert out.count(f"{word}: ") == 1
    assert f"1 {word}" in out
    code, out, err = commands("ls", tree)
    assert code == 1
    assert f"{tree}/second" in out
    assert f"{spoiled.stem}.pt" in out  # that of the second
    assert out.count("damaged: ") == 1
    code, out, err = commands("show", spoiled.with_suffix(".pt"))
    assert (code, out) == (1, "")
    assert spoiled.name in err
    for asked in (("gc", "--dry-run", tree / "first"), ("repair", "--dry-run", tree / "first")):
        assert commands(*asked)[0] in (0, 1)


@pytest.mark.parametrize("name", ["x.json", "x.pt"])
def test_a_pipe_among_the_checkpoints_keeps_nobody_waiting(tree, commands, train, name):
    run = tree / "first"
    os.mkfifo(run / "checkpoints" / "training" / name)
    code, out, _ = commands("verify", tree)
    assert code == 1
    assert out.count("bad: ") == 1
    train(f"resume={run}", "epochs=4").succeeded()


@pytest.mark.parametrize(
    ("file", "spoil", "says"),
    [
        ("run.json", fifo, "run.json cannot be read: it is not a regular file"),
        ("run.json", giant, "has more than"),
        ("run.json", text("[" * DEEP), "nested"),
        ("run.json", text('{"attempts": 5}'), "attempts is not what is written there"),
        ("run.json", text('{"attempts": [5]}'), "attempts is not what"),
        ("run.json", text('{"attempts": [{"overrides": 5}]}'), "overrides is not what"),
        ("run.json", text('{"attempts": [{"overrides": [], "hydra": "../.."}]}'), "hydra is not what"),
        ("run.json", text('{"run": "../x", "attempts": [{"overrides": []}]}'), "run is not what"),
        ("run.json", text('{"config": 5, "attempts": [{"overrides": []}]}'), "config is not what"),
        ("status.json", text("{}"), "status.json is not the status of a run"),
        ("status.json", text('{"state": "finished", "epoch": "x"}'), "is not the status of a run"),
        ("status.json", fifo, "not a regular file"),
        ("status.json", text("[" * DEEP), "nested"),
        (".hydra/config.yaml", text(ALIASES), "uses the alias"),
        (".hydra/config.yaml", text("[" * DEEP), "nested"),
        (".hydra/config.yaml", fifo, "not a regular file"),
        (".hydra/config.yaml", text("- a"), "holds no keys with values"),
    ],
)
def test_a_record_that_is_none_is_one_line_of_a_resume(tree, train, file, spoil, says):
    run = tree / "first"
    spoil(run / file)
    err = train(f"resume={run}", "epochs=4").refusal()
    assert says in err
    assert len(err) < 600


class Inner(dict):
    """Values within a part of a checkpoint, put over those that are there."""

    def over(self, value):
        return value | {k: v.over(value[k]) if isinstance(v, Inner) else v for k, v in self.items()}


def rewrite(run, change):
    """Save the newest checkpoint again with the contents that `change` makes of its own; returns its file."""
    last = newest(run)
    path = run / "checkpoints" / last.file
    state = change(serialize.load(path))
    target = Store(run / "checkpoints", last.run)
    target.delete(last)
    target.save([replace(last, sequence=0)], lambda file: torch.save(state, file))
    return path


@pytest.mark.parametrize(
    ("part", "inner", "says"),
    [
        *(("model_state_dict", 5, "is of type int"), ("metadata", "x", "is of type str")),
        *(("policies", None, "is of type NoneType"), ("progress", [1], "is of type list")),
        ("policies", Inner(best=5), "policy best"),
        ("policies", Inner(best={}), "policy best"),
        ("policies", Inner(best=Inner(best=[1])), "policy best"),
        ("policies", Inner(best=Inner(unranked={"accuracy": "many"})), "policy best"),
        ("policies", Inner(early_stopping=Inner(waited="x")), "policy early_stopping"),
        ("policies", Inner(early_stopping=Inner(best={"value": [], "epoch": 1})), "policy early_stopping"),
        ("policies", Inner(top_k=Inner(best=[5])), "policy top_k"),
        ("policies", Inner(top_k=Inner(unranked=[])), "policy top_k"),
        ("policies", Inner(sparsity=Inner(mask_version="x")), "policy sparsity"),
        ("policies", Inner(sparsity=Inner(previous_sparsity=[])), "policy sparsity"),
        ("policies", Inner(sparsity=Inner(unchanged=None)), "policy sparsity"),
        ("scheduler_state_dict", Inner(_step_count="x"), "scheduler_state_dict"),
        ("scheduler_state_dict", Inner(_last_lr=["x"]), "scheduler_state_dict"),
        ("scheduler_state_dict", Inner(lr_lambdas=5), "scheduler_state_dict"),
        ("scheduler_state_dict", Inner(step=5), "scheduler_state_dict"),
        ("scheduler_state_dict", Inner(optimizer=5), "scheduler_state_dict"),
        ("progress", Inner(step="x"), "progress"),
        ("progress", Inner(evaluated=[1]), "progress"),
        ("progress", Inner(nothing=1), "progress"),
        ("train_loss", Inner(count=[]), "train_loss"),
        ("rng_state", Inner(torch=5), "rng_state"),
        ("rng_state", Inner(numpy={}), "rng_state"),
        ("rng_state", Inner(python=5), "rng_state"),
        ("optimizer_state_dict", Inner(param_groups=5), "optimizer_state_dict"),
        ("optimizer_state_dict", Inner(state=5), "optimizer_state_dict"),
        ("optimizer_state_dict", Inner(pruning=5), "pruning"),
    ],
)
def test_values_of_other_types_are_one_line_and_change_nothing(tree, train, part, inner, says):
    run = tree / "first"
    rewrite(run, lambda state: Inner({part: inner}).over(state))
    before = bytes_of(run)
    err = train(f"resume={run}", "epochs=4").refusal()
    assert (f" {says}" if "of type" in says else f"The checkpoint's {says} cannot be restored") in err
    assert bytes_of(run) == before


def test_a_run_that_is_none_does_not_hide_the_others_from_latest(tree, train):
    (tree / "first" / "run.json").write_text('{"attempts": 5}')
    done = train("resume=latest").succeeded()
    assert f"{tree / 'second'} is finished" in done.out
    assert "passed over" in done.err
    assert done.err.count("\n") == 1


def test_one_bad_status_does_not_end_the_table_of_a_sweep(tree, capsys):
    for number, content in enumerate(("{}", "[" * DEEP, '{"state": 5}')):
        (tree / f"bad{number}").mkdir()
        (tree / f"bad{number}" / "status.json").write_text(content)
    (tree / "first" / ".hydra" / "overrides.yaml").write_text(ALIASES)
    assert cli.main(["report", str(tree)]) == 0
    out = capsys.readouterr().out
    assert out.count("unreadable") == 6  # in the table, and a note for each
    assert out.count("finished") == 2


@pytest.mark.parametrize(
    ("row", "ends"),
    [('{"kind": "eval"}', 1), ('{"kind": "train", "step": [1]}', 1), ("5", 1), ("[" * DEEP, 0)],
)
def test_metrics_of_any_kind_are_one_line_of_a_report(tree, capsys, row, ends):
    from peakpoint.commands.dispatch import main

    with (tree / "first" / "metrics.jsonl").open("a") as file:
        file.write(f"{row}\n")
    assert main(["report", str(tree / "first")]) == ends
    assert capsys.readouterr().err.count("\n") == ends


def test_what_a_run_appends_to_is_no_link_and_no_pipe(tree, train, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("of the user\n")
    run = tree / "first"
    for name in ("metrics.superseded.jsonl", "train.log"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious)
    train(f"resume={run}", "epochs=4").succeeded()
    assert precious.read_text() == "of the user\n"


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoints", "checkpoints/training", "checkpoints/milestone", "checkpoints/metadata"),
        *(".hydra", ".hydra/config.yaml", "run.json"),
    ],
)
def test_a_run_that_leads_into_another_is_not_followed(tree, commands, train, name):
    run, other = tree / "first", tree / "second"
    shutil.move(run / name, tree / "aside")
    (run / name).symlink_to(f"{'../' * len(Path(name).parts)}second/{name}")
    file = run / "checkpoints" / "training" / "latest.pt"
    before = bytes_of(other)
    for value in (run, file, f"{run} hydra.run.dir={tree}/fork"):
        err = train(*f"resume={value} epochs=4".split()).refusal()
        assert f"{run / name} is a link to {other / name}, outside {run}, and is not followed" in err
    code, _, err = commands("gc", run)
    assert code == 1
    assert "is not followed" in err
    assert bytes_of(other) == before


def test_the_directory_of_a_run_and_outputs_may_be_links(tree, train, tmp_path):
    shutil.move(tree, tmp_path / "disk")
    tree.symlink_to("disk")
    (tmp_path / "mine").symlink_to("outputs/first")
    assert train("resume=mine", "max_steps=25", "epochs=4").code == 0
    assert train("resume=outputs/second/checkpoints/training/latest.pt", "max_steps=25", "epochs=4").code == 0


def test_what_is_sent_is_no_link(tree, commands, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text(token := uuid.uuid4().hex)
    run = tree / "first"
    spoiled = run / "checkpoints" / newest(run).file
    for path in (run / "metrics.jsonl", run / ".hydra" / "more.yaml", spoiled):
        path.unlink(missing_ok=True)
        path.symlink_to(secret)
    code, _, err = commands("push", run, f"file://{tmp_path}/far", "--what", "milestone,training")
    assert (code, err) == (1, "")
    sent = [path.read_bytes() for path in (tmp_path / "far").rglob("*") if path.is_file()]
    assert sent
    assert not any(token.encode() in content for content in sent)
    assert not list((tmp_path / "far").rglob(spoiled.name))


def many(value, levels=40):
    for _ in range(levels):
        value = [value] * 10
    return value


def nested(levels=300):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


def packed(**facts):
    whole = {MARK: 1, "dtype": "float32", "shape": [4], "stride": [1], "form": "index"}
    return whole | {"index": torch.zeros(0, dtype=torch.uint8), "values": torch.zeros(0)} | facts


BOMBS = {
    "one number under a large shape": lambda: torch.zeros(1).expand(2**33),
    "many of them": lambda: [torch.zeros(1).expand(2**26) for _ in range(40)],
    "a shape beyond whole numbers": lambda: torch.zeros(1).as_strided((2**31, 2**30), (0, 0)),
    "no memory at all": lambda: torch.empty(2**40, device="meta"),
    "a list of itself many times": lambda: many(1),
    "a list within a list": nested,
    "packed zeros": lambda: packed(shape=[2**40]),
    "packed zeros beyond whole numbers": lambda: packed(shape=[2**40, 2**40], stride=[2**40, 1]),
    "packed with gaps": lambda: packed(shape=[2], stride=[2**40]),
    "packed backwards": lambda: packed(shape=[-1]),
}


@pytest.mark.parametrize("make", BOMBS.values(), ids=BOMBS)
def test_a_small_file_that_stands_for_much_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.setattr(archive, "FLOOR", 1 << 26)  # of values there are fewer to walk
    path = tmp_path / "a.pt"
    torch.save({"optimizer_state_dict": make()}, path)
    with pytest.raises(CheckpointError, match=r"refused|damaged"):
        serialize.load(path)


def test_what_is_shared_or_seen_many_ways_is_loaded(tmp_path):
    weight = torch.arange(6.0)
    torch.save({"w": weight, "tied": weight, "turned": weight.view(2, 3).t(), "one": torch.ones(1).expand(9)},
               tmp_path / "a.pt")  # fmt: skip
    found = serialize.load(tmp_path / "a.pt")
    assert torch.equal(found["turned"], weight.view(2, 3).t())
    assert found["one"].sum() == 9


def test_no_network_is_asked_for_more_than_its_file_holds(tree, commands):
    def enlarge(state):
        name, weight = max(state["model_state_dict"].items(), key=lambda item: item[1].numel())
        state["model_state_dict"][name] = torch.zeros(1).expand(2**23, *weight.shape)
        return state

    run = tree / "first"
    path = rewrite(run, enlarge)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(CheckpointError, match="its tensors would fill more than"):
        load_model(path)
    code, _, err = commands("unpack", path, run / "out.pt")
    assert code == 1
    assert "its tensors would fill more than" in err
