"""A sweep ends with the same exit code, table and record whatever launches its jobs."""

import json
import shutil
import subprocess

import pytest

from tests.conftest import ROOT, TINY, process, status
from tests.skips import NO_SLURM

ONE_CORE = ("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=2")
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": (),
    "submitit_slurm": ("hydra.launcher.partition=main", *ONE_CORE),
}


def slurm():
    """Whether a SLURM is there."""
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20, check=False).returncode == 0


@pytest.fixture(scope="module")
def basic(tmp_path_factory):
    return swept(tmp_path_factory.mktemp("basic"), "basic")


def swept(place, launcher):
    """The end of a sweep of which one job fails, and its folder."""
    words = (*TINY, "epochs=1", "logger=[]", "device=cpu,cuda", "seed=1,2", "hydra.sweep.dir=sweep")
    chosen = (f"hydra/launcher={launcher}", *LAUNCHERS[launcher])
    done = process(ROOT / "train.py", "-m", *words, *chosen, cwd=place)
    return done, place / "sweep"


def table(done):
    """The table of a sweep without time and memory, its notes, and what to do next."""
    lines = done.stdout.splitlines()
    lines = lines[lines.index("sweep") + 1 :]
    shown = [
        line.split(" s ")[0].rsplit(" ", 1)[0].split() if " s " in line else line.split() for line in lines
    ]
    return [words for words in shown if words and "─" not in words[0]][:-1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_the_end_of_a_sweep_is_the_same(basic, tmp_path, launcher):
    if launcher == "submitit_slurm" and not slurm():
        pytest.skip(NO_SLURM)
    expected, before = basic
    done, folder = swept(tmp_path, launcher)
    assert done.returncode == expected.returncode == 1, done.stderr
    assert table(done) == table(expected)
    found, other = (json.loads((place / "sweep.json").read_text()) for place in (folder, before))
    assert found["jobs"] == other["jobs"]
    assert [job["state"] for job in found["jobs"]] == ["finished", "finished", "failed", "failed"]
    assert (found["state"], found["launcher"]) == ("failed", launcher)
    assert all(status(folder / job)["objective"] == status(before / job)["objective"] for job in "01")
    assert sorted(path.name for path in folder.glob("*.csv")) == ["table.csv"]
    assert f"hydra/launcher={launcher}" in done.stdout.splitlines()[-1]
