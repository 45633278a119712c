"""Releases in any order of writes, kills, damage, deletion and repair: one version, one content, for ever."""

import contextlib
from random import Random

import pytest

from peakpoint.base.digests import SHA256, digest_of
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.storage import listing
from peakpoint.commands import dispatch as cli
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import damage
from tests.checkpointing.publish_cases import PLAIN, SAFE, files, journaled, small
from tests.faults.fault_cases import Faulty, in_child

VERSIONS = ("1.0.0", "1.0.1", "1.1.0-rc.1", "1.1.0", "2.0.0")


class History:
    """A folder of releases, and what was ever promised of it: the digest of each file by version."""

    def __init__(self, root, seed):
        self.root = root
        self.dice = Random(seed)
        self.promised: dict[str, dict[str, str]] = {}
        self.harmed: set[str] = set()

    def listed(self):
        return listing.by_version(self.root)

    def note(self):
        """What is released for the first time is what it must be from now on."""
        for version, manifest in self.listed().items():
            if version not in self.promised:
                release.verify(self.root, manifest)
                found = {p.relative_to(self.root).as_posix(): p for p in files(self.root, version)}
                self.promised[version] = {name: digest_of(p, SHA256) for name, p in found.items()}

    def write(self):
        made = small(
            self.dice.choice(VERSIONS), seed=self.dice.randrange(9), form=self.dice.choice([PLAIN, SAFE])
        )
        fault = Faulty(self.dice.choice([0, self.dice.randrange(1, 60)]), self.dice.choice(["kill", "torn"]))

        def work(say):
            with contextlib.suppress(CheckpointError):
                release.write(self.root, made)
                say("released")

        _, stated = in_child(work, fault)
        assert "released" not in stated or made.version not in self.promised
        assert "released" not in stated or made.version in self.listed()

    def damage(self):
        if sound := sorted(self.promised.keys() & self.listed().keys() - self.harmed):
            version = self.dice.choice(sound)
            damage(self.dice.choice(files(self.root, version)), flip=self.dice.random() < 0.5)
            self.harmed.add(version)

    def delete(self):
        if sound := sorted(self.promised.keys() & self.listed().keys() - self.harmed):
            version = self.dice.choice(sound)
            for path in reversed(files(self.root, version)):
                path.unlink()
            self.harmed.add(version)

    def repair(self):
        cli.main(["repair", str(self.root)])

    def check(self):
        for version, promised in self.promised.items():
            whole = {
                n: digest_of(self.root / n, SHA256) for n in promised if (self.root / n).exists()
            } == promised
            assert whole == (version not in self.harmed), version
            if whole:
                release.verify(self.root, self.listed()[version])
        assert set(journaled(self.root)) <= self.promised.keys()
        assert len(journaled(self.root)) == len(set(journaled(self.root)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_a_version_has_one_content_for_ever(tmp_path, seed, capsys):
    release.write(tmp_path, small("0.1.0"))
    history = History(tmp_path, seed)
    for _ in range(16):
        history.note()
        act = history.dice.choices(
            [history.write, history.damage, history.delete, history.repair], [9, 1, 1, 2]
        )[0]
        act()
        history.note()
        history.check()
    history.repair()
    history.note()
    history.check()
    assert set(journaled(tmp_path)) == history.promised.keys()
    for version in sorted(set(VERSIONS) - history.promised.keys()):  # what killed tries left stops nobody
        release.write(tmp_path, small(version))
    history.note()
    history.check()
    assert set(VERSIONS) <= history.promised.keys()
    assert list(tmp_path.rglob(f"{STAGED_PREFIX}*")) == []
    capsys.readouterr()
    sound = history.promised.keys() - history.harmed
    assert set(history.listed()) == sound
    for manifest in history.listed().values():
        release.verify(tmp_path, manifest, run=True)
