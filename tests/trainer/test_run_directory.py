"""A start that is refused leaves every byte as it was; of two starts at once one is refused."""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from peakpoint.base.lock import one_writer
from peakpoint.commands.dispatch import main as cli
from peakpoint.commands.dispatch import main as ls_main
from tests.conftest import TINY, run_main, status
from tests.states import newest


def listing(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file, link and folder below one; of files the digest and the time."""
    found = {}
    for path in folder.rglob("*"):
        name, info = str(path.relative_to(folder)), path.lstat()
        if path.is_symlink():
            found[name] = (f"-> {path.readlink()}", info.st_mtime_ns)
        elif path.is_file():
            found[name] = (hashlib.sha256(path.read_bytes()).hexdigest(), info.st_mtime_ns)
        else:
            found[name] = ("folder", 0)
    return found


@pytest.fixture
def taken(tmp_path, whole_run, monkeypatch):
    """outputs/lenet5, a copy of a finished run, to stand beside."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole_run, tmp_path / "outputs" / "lenet5", symlinks=True)
    return tmp_path / "outputs" / "lenet5"


REFUSED = {
    "typed": ["hydra.run.dir=outputs/lenet5"],
    "interpolated": ["hydra.run.dir=outputs/${model.name}"],
    "hydra's own": ["hydra.job.name=lenet5", "hydra.run.dir=outputs/${hydra:job.name}"],
    "environment": ["hydra.run.dir=${oc.env:PLACE}"],
    "local": ["--config-dir", "configs"],
    "sweep": ["-m", "hydra.sweep.dir=outputs/lenet5"],
    "sweep's job": ["-m", "hydra.sweep.dir=outputs", "hydra.sweep.subdir=${model.name}"],
    "wrong value too": ["hydra.run.dir=outputs/lenet5", "batch_size=4096"],
    "hydra's records": ["hydra.run.dir=outputs/lenet5", "hydra.output_subdir=.hydra"],
    "among its checkpoints": ["hydra.run.dir=outputs/lenet5/checkpoints"],
    "in its record": ["hydra.run.dir=outputs/lenet5/.hydra/new"],
    "sweep among its checkpoints": ["-m", "hydra.sweep.dir=outputs/lenet5/checkpoints/sweep"],
    "hydra's log": ["hydra.run.dir=outputs/lenet5", "hydra/job_logging=default"],
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED)
def test_a_second_start_into_the_directory_of_a_run_changes_nothing(taken, arguments, monkeypatch):
    monkeypatch.setenv("PLACE", "outputs/lenet5")
    local = Path("configs/local/default.yaml")
    local.parent.mkdir(parents=True)
    local.write_text("# @package _global_\nhydra:\n  run:\n    dir: outputs/lenet5\n")
    before = listing(taken)
    err = run_main(*arguments, *TINY, "seed=5").refusal()
    known = ("outputs/lenet5 holds a run", "belongs to the run in", "hydra.", "4096")
    assert any(words in err for words in known)
    assert listing(taken) == before
    assert run_main("resume=outputs/lenet5", "epochs=4").code == 0


@pytest.mark.parametrize("what", ["nothing", "dangling", "loop", "folder"])
@pytest.mark.parametrize("name", ["run.json", "status.json"])
def test_a_record_that_is_none_is_one_line_and_stays(taken, name, what, capsys):
    record = taken / name
    record.unlink()
    if what == "nothing":
        record.touch()
    elif what == "folder":
        record.mkdir()
    else:
        record.symlink_to("nowhere" if what == "dangling" else name)
    before = listing(taken)
    for arguments in (
        ["hydra.run.dir=outputs/lenet5", *TINY],
        ["-m", "hydra.sweep.dir=outputs", "hydra.sweep.subdir=lenet5", *TINY],
        ["resume=outputs/lenet5", "epochs=4"],
        [f"resume={taken / 'checkpoints' / newest(taken).file}", "epochs=4"],
    ):
        err = run_main(*arguments).refusal()
        assert name in err or "holds a run" in err
        Path("outputs/multirun.yaml").unlink(missing_ok=True)
        assert listing(taken) == before
    assert ls_main(["ls", str(taken)]) == 0
    assert cli(["report", str(taken)]) == (name == "run.json")
    assert capsys.readouterr().err.count("\n") == (name == "run.json")


WRONG_RESUMES = {
    "seed": ["epochs=9", "seed=5"],
    "value": ["epochs=9", "optimizer.lr=-1"],
    "key": ["epohcs=9"],
    "data": ["epochs=9", "data.train_size=160"],
    "model": ["epochs=9", "model=resnet20"],
    "mirror": ["epochs=9", "checkpoint.mirror.url=nowhere://x"],
    "what to mirror": ["epochs=9", "checkpoint.mirror.url=file:///tmp/none", "checkpoint.mirror.what=[x]"],
    "network": ["epochs=9", "data.num_classes=5"],
}


@pytest.mark.parametrize("arguments", WRONG_RESUMES.values(), ids=WRONG_RESUMES)
def test_a_resume_that_is_refused_changes_nothing(taken, arguments):
    before = listing(taken)
    run_main("resume=outputs/lenet5", *arguments).refusal()
    assert listing(taken) == before


def test_a_checkpoint_from_which_nothing_is_left_to_train_changes_nothing(taken):
    before = listing(taken)
    done = run_main(f"resume={taken / 'checkpoints' / newest(taken).file}")
    assert "(epoch 3, step 24): there is nothing left to train. Add epochs=N, with N above 3." in done.err
    assert listing(taken) == before


def test_while_another_process_writes_nobody_else_does(taken):
    with one_writer(taken):
        before = listing(taken)
        for arguments in (
            ["resume=outputs/lenet5", "epochs=4"],
            ["hydra.run.dir=outputs/lenet5", *TINY],
            ["-m", "hydra.sweep.dir=outputs", "hydra.sweep.subdir=lenet5", *TINY],
        ):
            err = run_main(*arguments).refusal()
            assert "is being written by process" in err or "holds a run" in err
            assert listing(taken) == before


@pytest.mark.parametrize("arguments", [["resume=outputs/lenet5", "epochs=4"], [*TINY, "hydra.run.dir=new"]])
def test_of_two_at_once_only_one_trains(taken, arguments):
    started = [_forked(*arguments) for _ in range(2)]
    codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started)
    new = "hydra.run.dir=new" in arguments
    # The second is refused, but a resume that starts after the first has ended finds the run finished.
    assert codes == [0, 1] or (codes == [0, 0] and not new)
    run = Path("new") if new else taken
    attempts = json.loads((run / "run.json").read_text())["attempts"]
    assert len(attempts) == (1 if new else 2)
    saved = [str(p.parent.relative_to(run)) for p in run.rglob("config.yaml")]
    assert sorted(saved) == [attempt["hydra"] for attempt in attempts]
    assert status(run)["state"] == "finished"


@pytest.mark.parametrize("file", ["status.json", "run.json"])
def test_killed_between_its_records_a_resumed_run_is_not_called_finished(taken, file):
    child = os.fork()
    if child == 0:
        sys.addaudithook(
            lambda event, what: (
                os._exit(9) if event == "os.rename" and str(what[1]) == str(taken / file) else None
            )
        )
        run_main("resume=outputs/lenet5", "epochs=4")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    attempts = json.loads((taken / "run.json").read_text())["attempts"]
    asked = ["epochs=4"] if len(attempts) == 1 else []  # else the record knows
    assert run_main("resume=outputs/lenet5", *asked).code == 0
    assert (status(taken)["state"], status(taken)["epoch"]) == ("finished", 4)


def _forked(*arguments: str) -> int:
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = run_main(*arguments).code
        finally:
            os._exit(code)
    return child


def test_a_directory_that_was_made_for_a_refused_start_is_gone(train, tmp_path):
    (tmp_path / "mine").mkdir()
    for place in ("new/deep/er", "mine", "mine/new"):
        for wrong in ("batch_size=4096", "optimizer.lr=-1", "data=npz"):
            assert train(*TINY, wrong, f"hydra.run.dir={place}").code == 1
    assert train("-m", *TINY, "seed=1,2", "hydra.sweep.dir=new/sweep", "hydra.output_subdir=x").code == 1
    assert train("-m", *TINY, "seed=1,2", "epohcs=1", "hydra.sweep.dir=new/sweep").code == 1
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("file", "hydra.run.dir=file cannot be made: {here}/file is not a directory."),
        ("file/below", "hydra.run.dir=file/below cannot be made: {here}/file is not a directory."),
        ("dangling", "hydra.run.dir=dangling cannot be made: {here}/dangling is not a directory."),
        ("${oc.env:NOT_SET}", "hydra.run.dir: .*'NOT_SET' not found.*"),
    ],
)
def test_a_directory_that_cannot_be_made_is_one_line(train, tmp_path, place, sentence):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    for arguments in ([f"hydra.run.dir={place}"], ["-m", f"hydra.sweep.dir={place}"]):
        done = train(*arguments, *TINY).failed()
        expected = sentence.format(here=tmp_path).replace("hydra.run", arguments[-1].split(".dir=")[0])
        assert re.fullmatch(f"error: {expected}\n", done.err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "file"]


def test_a_second_sweep_into_the_directory_of_a_first_changes_nothing(train, tmp_path):
    arguments = ("-m", *TINY, "epochs=1", "hydra.sweep.dir=sweep")
    assert train(*arguments, "seed=1").code == 0
    before = listing(tmp_path)
    assert train(*arguments, "seed=2").refusal().startswith("error: sweep holds a sweep whose job 0 is ")
    run = train(*TINY, "epochs=1", "hydra.run.dir=sweep")
    assert (run.code, run.err) == (1, "error: sweep holds a sweep: choose another hydra.run.dir.\n")
    assert listing(tmp_path) == before


def test_jobs_of_a_sweep_that_want_one_directory(train, tmp_path):
    err = train(
        "-m", *TINY, "epochs=1", "seed=1,2", "hydra.sweep.dir=sweep", "hydra.sweep.subdir=one"
    ).refusal()
    assert "job 0 and job 1 have one directory" in err
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_a_record_of_hydra_and_no_run_keeps_it(train, tmp_path):
    """As a start leaves it that is killed before its run.json."""
    saved = tmp_path / "run" / ".hydra"
    (saved / "resume-001").mkdir(parents=True)
    (saved / "config.yaml").write_text("seed: 1\n")
    for folder in (saved, saved / "resume-001"):
        (folder / ".staged-123-abcd").write_text("half")
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0
    assert (saved / "config.yaml").read_text() == "seed: 1\n"
    assert not list(saved.rglob(".staged-*"))
    assert train("resume=run", "epochs=2").code == 0
    attempts = json.loads((tmp_path / "run" / "run.json").read_text())["attempts"]
    assert [a["hydra"] for a in attempts] == [".hydra/resume-002", ".hydra/resume-003"]


def test_a_sweep_whose_jobs_all_fail_keeps_its_record(train, tmp_path):
    done = train("-m", *TINY, "device=cuda", "seed=1,2", "hydra.sweep.dir=sweep").failed()
    jobs = [line.split() for line in done.out.splitlines() if line[:1].isdigit()]
    assert [cells[:3] for cells in jobs[:2]] == [["0", "seed=1", "failed"], ["1", "seed=2", "failed"]]
    assert {"0", "1", "multirun.yaml", "sweep.json"} <= {p.name for p in (tmp_path / "sweep").iterdir()}


def test_a_file_in_the_place_of_a_tier_is_refused_before_the_first_step(train, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "milestone").write_text("")
    err = train(*TINY, "hydra.run.dir=run").refusal()
    assert "Checkpoints cannot be written to" in err
    assert err.endswith("directory is named with hydra.run.dir=DIR.\n")
    assert not (tmp_path / "run" / "run.json").exists()
