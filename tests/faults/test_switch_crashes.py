"""An alias that is set, and a rollback, ended at every storage operation: the old release or the new one."""

import errno
import os
import shutil

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases, journal
from peakpoint.deployment.release import changelog
from peakpoint.deployment.release.rollback import roll_back
from tests.checkpointing.release_cases import history, released
from tests.faults.fault_cases import KILLED, REFUSED, Faulty, in_child


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """1.1.0 is the champion, after 1.0.0."""
    root = released(tmp_path_factory.mktemp("switch") / "served", "1.0.0", "1.1.0")
    for version in ("1.0.0", "1.1.0"):
        aliases.assign(root, "champion", version, "")
    changelog.write(root)
    return root


class Tearing(Faulty):
    """A write that is cut short: half of the journal's line is on disk."""

    def install(self):
        real = os.write
        super().install()

        def write(descriptor, data):
            self.strike(lambda: real(descriptor, data[: len(data) // 2]))
            return real(descriptor, data)

        os.write = write


def work(root, deed, say):
    if deed == "rollback":
        roll_back(root, "1.0.0")
    else:
        aliases.assign(root, "champion", None if deed == "remove" else "1.0.0", "")
    say("done")


@pytest.mark.parametrize("how", ["kill", "torn", errno.ENOSPC, errno.EIO], ids=str)
@pytest.mark.parametrize("deed", ["set", "remove", "rollback"])
def test_whatever_the_moment_the_alias_is_the_old_or_the_new(prepared, tmp_path, deed, how):
    at, seen = 0, set()
    old, new = ["1.0.0", "1.1.0"], ["1.0.0", "1.1.0", None if deed == "remove" else "1.0.0"]
    while True:
        at += 1
        root = tmp_path / f"{at}"
        shutil.copytree(prepared, root, symlinks=True)
        code, stated = in_child(lambda say, root=root: work(root, deed, say), Tearing(at, how))
        if code == 0 and at > int(stated[-1].split()[1]):
            break
        assert code in ((KILLED,) if isinstance(how, str) else (0, REFUSED)), (at, stated)
        found = history(root)
        assert found in (old, new)
        assert found == new or "done" not in stated
        seen.add((tuple(found), code))
        assert changelog.text(root)
        # The next one stands on its own, whatever was left behind.
        aliases.assign(root, "champion", "1.1.0", "next")
        assert history(root) == (old if found == old else [*new, "1.1.0"])
        assert (root / "production" / "champion.pt").readlink().name == "le_net5_v1.1.0.pt"
        numbers = [fact["number"] for fact in journal.recorded(root)]
        assert numbers == sorted(set(numbers))
    assert at > 8
    assert {states for states, _ in seen} == {tuple(old), tuple(new)}


def test_a_journal_that_is_written_over_is_caught(prepared, tmp_path, monkeypatch):
    """Negative control: with a journal that is written anew the same kills do lose the history."""

    def anew(root, fact):
        path = root / journal.JOURNAL
        text = path.read_text() + journal._sealed({"number": 99, **fact}) + "\n"
        with path.open("w") as file:
            os.fsync(file.fileno())
            file.write(text)

    lost = 0
    for at in range(1, 8):
        root = tmp_path / f"{at}"
        shutil.copytree(prepared, root, symlinks=True)
        with monkeypatch.context() as patch:
            patch.setattr(journal, "_write", anew)
            in_child(lambda say, root=root: work(root, "set", say), Tearing(at, "kill"))
        try:
            lost += history(root)[:2] != ["1.0.0", "1.1.0"]
        except CheckpointError:
            lost += 1
    assert lost > 0
