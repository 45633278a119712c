"""A release, ended at every single storage operation; and several processes that release at once."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.deployment.release import publish, release
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.checkpointing.publish_cases import PLAIN, SAFE, contents, files, journaled, small, sound
from tests.conftest import ROOT, process
from tests.faults.fault_cases import KILLED, Faulty, in_child, mounted

SECOND = {"pt": small("1.1.0", seed=1), "safetensors": small("1.1.0", seed=1, form=SAFE)}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A root with one release; not to be changed."""
    root = tmp_path_factory.mktemp("first")
    release.write(root, small("1.0.0"))
    return root


def copy(first, root):
    shutil.copytree(first, root, symlinks=True)
    return root


def work(root, say, made):
    try:
        release.write(root, made)
        say("released")
    except CheckpointError as error:
        say(f"refused {error}")


def check(root, stated, before):
    """What must hold at once, before anybody has tidied up."""
    versions = sound(root)
    assert versions in (["1.0.0"], ["1.0.0", "1.1.0"]), stated
    if "released" in stated:
        assert versions == ["1.0.0", "1.1.0"]
    after = contents(root)
    assert {name: after[name] for name in before} == before
    return versions


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("how", "lasting"),
    [("kill", False), ("torn", False), (errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)],
    ids=["kill", "torn write", "ENOSPC", "EIO", "EIO from then on"],
)
def test_whatever_the_moment_a_release_is_whole_or_not_there(first, tmp_path, how, lasting, form):
    at, seen, before = 0, set(), contents(first)
    while True:
        at += 1
        root = copy(first, tmp_path / f"{at}")
        code, stated = in_child(
            lambda say, root=root: work(root, say, SECOND[form]), Faulty(at, how, lasting=lasting)
        )
        if code == 0 and at > int(stated[-1].removeprefix("count ")):
            break
        assert code == (KILLED if isinstance(how, str) else 0), (at, stated)
        versions = check(root, stated, before)
        seen |= {(line.split()[0], tuple(versions)) for line in stated if not line.startswith(("t", "c"))}
        if isinstance(how, int) and not lasting and "released" not in stated:
            assert versions == ["1.0.0"]  # refused is not released
            assert contents(root) == before
        again(root, versions, form)
        shutil.rmtree(root)
    assert at > 40
    both = ("1.0.0", "1.1.0")
    if isinstance(how, int):  # refused, and done although its journal or its pointer was
        assert {("refused", ("1.0.0",)), ("released", both)} <= seen


def again(root, versions, form):
    """The next try succeeds, or says that the last one did; then all is as if nothing had happened."""
    if versions == ["1.0.0"]:
        release.write(root, SECOND[form])
    else:
        with pytest.raises(CheckpointError, match=r"1\.1\.0 is released already"):
            release.write(root, SECOND[form])
    assert sound(root, run=True) == journaled(root) == ["1.0.0", "1.1.0"]
    assert list(root.rglob(f"{STAGED_PREFIX}*")) == []
    (latest,) = (p for p in (root / "production").iterdir() if p.is_symlink())
    assert latest.resolve().name == Path(listing.releases(root)[-1].file).name


def test_a_manifest_that_is_written_first_is_caught(first, tmp_path, monkeypatch):
    """Negative control: with the manifest before what it vouches for, the same crashes do break a release."""

    def eager(root, manifest, payload):
        forged = replace(manifest, bytes=1, digest=f"sha256:{'0' * 64}")
        (root / manifest.file).with_suffix(".json").write_text(forged.to_json())
        return real(root, manifest, payload)

    real, caught = publish.publish, 0
    monkeypatch.setattr(publish, "publish", eager)
    for at in range(20, 40, 4):
        root = copy(first, tmp_path / f"{at}")
        in_child(lambda say, root=root: work(root, say, SECOND["pt"]), Faulty(at, "kill"))
        try:
            check(root, [], contents(first))
        except CheckpointError:
            caught += 1
    assert caught > 0


def test_a_file_that_may_not_grow_leaves_nothing_behind(first, tmp_path):
    root = copy(first, tmp_path / "root")
    before = contents(root)
    for form in ("pt", "safetensors"):
        with (
            files_no_larger_than(20_000),
            pytest.raises(CheckpointError, match=r"could not be written to .* are free\.$"),
        ):
            release.write(root, SECOND[form])
        assert contents(root) == before
        assert list(root.rglob(f"{STAGED_PREFIX}*")) == []
    assert journaled(root) == ["1.0.0"]
    release.write(root, SECOND["pt"])
    assert sound(root, run=True) == ["1.0.0", "1.1.0"]


@pytest.mark.root
def test_a_full_disk_leaves_nothing_behind_and_says_what_is_needed(first, tmp_path):
    with mounted(tmp_path / "disk", "-t tmpfs -o size=600k tmpfs") as disk:
        root = copy(first, disk / "root")
        before = contents(root)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 60_000))
        with pytest.raises(CheckpointError, match=r"No space left on device; it needs .* are free\.$"):
            release.write(root, SECOND["pt"])
        assert contents(root) == before
        ballast.unlink()
        release.write(root, SECOND["pt"])
        assert sound(root, run=True) == journaled(root) == ["1.0.0", "1.1.0"]


_MEMORY = """
import resource, sys
from pathlib import Path
import torch
from peakpoint.deployment.release import release
from peakpoint.base.errors import SaveFailed
from tests.checkpointing.publish_cases import small

torch.set_num_threads(1)
root = Path(sys.argv[1])
made = small("1.1.0", description=None, config={}, weights={"w": torch.ones(50_000_000)}, name="another")
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 27), now + (1 << 27)))
try:
    release.write(root, made)
except SaveFailed as error:
    print(error)
"""


def test_memory_that_is_full_is_one_line(first, tmp_path):
    root = copy(first, tmp_path / "root")
    done = process("-c", _MEMORY, root)
    assert "it takes 200.0 MB of memory that is not there" in done.stdout
    assert contents(root) == contents(first)


_RIVAL = """
import json, sys
from pathlib import Path
from peakpoint.deployment.release import release
from peakpoint.base.errors import CheckpointError
from tests.checkpointing.publish_cases import small

root, seed = Path(sys.argv[1]), int(sys.argv[2])
made = [small(f"1.{number}.0", seed=seed, name=f"of_{seed % 2}") for number in range(6)]
print("ready", flush=True)
sys.stdin.readline()
won = []
for each in made:
    try:
        won.append([each.version, release.write(root, each).digest])
    except CheckpointError as error:
        assert "is released already" in str(error), error
print(json.dumps(won))
"""


def test_of_several_that_release_a_version_at_once_one_does(tmp_path):
    root = tmp_path / "root"
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", _RIVAL, str(root), str(seed)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("\n")
        rival.stdin.flush()
    won = [pair for rival in rivals for pair in json.loads(rival.communicate(timeout=200)[0])]
    expected = [f"1.{number}.0" for number in range(6)]
    assert sorted(version for version, _ in won) == expected
    assert sound(root, run=True) == expected
    assert {version: m.digest for version, m in listing.by_version(root).items()} == dict(won)
    assert sorted(journaled(root)) == expected
    assert list(root.rglob(f"{STAGED_PREFIX}*")) == []
    assert not (root / "quarantine").exists()


def test_where_there_are_no_hard_links_nothing_is_written_over_either(first, tmp_path, monkeypatch):
    root = copy(first, tmp_path / "root")
    before = contents(root)

    def no_links(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    release.write(root, SECOND["pt"])
    assert sound(root, run=True) == ["1.0.0", "1.1.0"]
    with pytest.raises(CheckpointError, match="is released already"):
        release.write(root, small("1.1.0", seed=5))
    # A rival that no lock keeps out has taken the name meanwhile.
    monkeypatch.setattr(publish.quarantine, "quarantine", lambda *_, **__: None)
    rival = root / "production" / "lenet5_v1.2.0.pt"
    rival.write_text("of a rival")
    with pytest.raises(CheckpointError, match="was made by another process meanwhile: try again"):
        release.write(root, small("1.2.0"))
    assert rival.read_text() == "of a rival"
    after = contents(root)
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("form", [PLAIN, SAFE], ids=lambda form: form.format)
def test_any_damage_to_any_file_of_a_release_is_found(tmp_path, form):
    root = tmp_path / "root"
    release.write(root, small("1.0.0"))
    release.write(root, small("1.1.0", seed=1, form=form))
    dice = Random(0)
    several = files(root, "1.1.0")
    assert len(several) == 6
    for victim in several:
        whole = victim.read_bytes()
        for time in range(50):
            data = bytearray(whole)
            if time % 2:
                del data[dice.randrange(len(data)) :]
            else:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            victim.write_bytes(data)
            assert locate.newest_in(root, "production").tags == ("v1.0.0",), victim
        victim.unlink()
        assert locate.newest_in(root, "production").tags == ("v1.0.0",), victim
        victim.write_bytes(whole)
        assert locate.newest_in(root, "production").tags == ("v1.1.0",)
    assert not (root / "quarantine").exists()
