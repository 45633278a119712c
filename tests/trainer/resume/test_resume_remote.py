"""resume=URL: a run that is only in a remote place goes on here as it would have where it was."""

import json
import shutil

import pytest

from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from tests.conftest import TINY, rows, status
from tests.remotes import Fault
from tests.states import differences, load_newest

ALL = "checkpoint.mirror.what=[milestone,training]"


@pytest.fixture
def lost(train, s3, tmp_path):
    """A run of two epochs that was mirrored, and its copy in another place; what it was in is gone."""
    place = f"checkpoint.mirror.url={s3.url}/runs"
    done = train(*TINY, "epochs=2", "checkpoint.interval_steps=3", place, ALL, "hydra.run.dir=run")
    assert done.code == 0, done.err
    shutil.copytree(tmp_path / "run", tmp_path / "copy", symlinks=True)
    shutil.rmtree(tmp_path / "run")
    return tmp_path / "copy"


def test_bit_for_bit_as_from_the_local_run(train, s3, tmp_path, lost):
    word = f"checkpoint.mirror.url={s3.url}/runs"
    done = train(f"resume={s3.url}/runs", "epochs=4", "hydra.run.dir=back")
    assert f"from {s3.url}/runs/" in done.out
    assert f"copies are sent only at your word: add {word} to the command" in done.err
    done = train(f"resume={s3.url}/runs", "epochs=4", "hydra.run.dir=back", word)
    assert done.code == 0, done.err
    assert "pulled " not in done.out  # all of it is here
    done = train("resume=copy", "epochs=4", "checkpoint.mirror.url=null")
    assert done.code == 0, done.err
    back = tmp_path / "back"
    found = [d for d in differences(load_newest(back), load_newest(lost)) if "/checkpoint/mirror" not in d]
    assert found == []
    there, here = (json.dumps(rows(run, "train", "eval", "test")) for run in (back, lost))
    assert there.replace(str(back), str(lost)) == here
    assert [m.file for m in listing.manifests(back / "checkpoints")] == [
        m.file for m in listing.manifests(lost / "checkpoints")
    ]
    record = json.loads((back / "run.json").read_text())
    assert record["run"] == json.loads((lost / "run.json").read_text())["run"]
    assert [a["hydra"] for a in record["attempts"]] == [".hydra", ".hydra/resume-001"]
    # It goes on with its mirror, too.
    done = train(f"resume={s3.url}/runs", "hydra.run.dir=other", word)
    assert "is finished at epoch 4" in done.out


def test_without_a_directory_it_is_under_outputs_and_goes_on_there(train, s3, tmp_path, lost):
    assert train(f"resume={s3.url}/runs", "epochs=3", "checkpoint.mirror.url=null").code == 0
    (run,) = (tmp_path / "outputs").iterdir()
    assert run.name.startswith("run-")
    assert status(run)["epoch"] == 3
    s3.proxy.seen.clear()
    done = train(f"resume={s3.url}/runs", "epochs=4", "checkpoint.mirror.url=null")
    assert done.code == 0, done.err
    assert list((tmp_path / "outputs").iterdir()) == [run]
    assert status(run)["epoch"] == 4
    assert s3.proxy.lines(b".pt") == []  # what is here is newer


def test_from_a_milestone_in_the_mirror(train, s3, tmp_path, lost):
    milestone = listing.in_tier(lost / "checkpoints", "milestone")[0]
    url = f"{s3.url}/runs/{milestone.run}/checkpoints/{milestone.file}"
    done = train(f"resume={url}", "epochs=3", "hydra.run.dir=back", "checkpoint.mirror.url=null")
    assert done.code == 0, done.err
    attempts = json.loads((tmp_path / "back" / "run.json").read_text())["attempts"]
    assert attempts[-1]["resumed_from"].endswith(milestone.file)
    here = serialize.load(tmp_path / "back" / "checkpoints" / milestone.file)
    assert differences(here, serialize.load(lost / "checkpoints" / milestone.file)) == []


def test_a_bad_network_is_got_over(train, s3, tmp_path, lost):
    s3.proxy.faults = [Fault(kind, b".pt") for kind in ("drop", "reset", "truncate", "lie")]
    done = train(f"resume={s3.url}/runs", "epochs=3", "hydra.run.dir=back", "checkpoint.mirror.url=null")
    assert done.code == 0, done.err
    assert status(tmp_path / "back")["epoch"] == 3


def test_what_is_wrong_is_one_line(train, s3, tmp_path, lost):
    for arguments, says in (
        ([f"resume={s3.url}/nothing"], "holds no copies of a run"),
        (["resume=foo://x/y"], "resume=foo://x/y: fsspec knows no protocol foo"),
        ([f"resume={s3.url}/runs", "hydra.run.dir=copy2"], "is not empty, and not of this run"),
        ([f"resume={s3.url}/runs", "hydra.run.dir='x/${now:%Y}'"], "name a directory as it is"),
        ([f"resume={s3.url}/runs", "-m"], "leave out --multirun"),
    ):
        (tmp_path / "copy2").mkdir(exist_ok=True)
        (tmp_path / "copy2" / "thesis.txt").write_text("mine")
        done = train(*arguments)
        assert done.code == 1
        assert says in done.err
        assert done.err.count("\n") == 1
