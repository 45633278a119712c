"""A save in two roles, a pointer and a retention pass, ended at every single storage operation."""

import errno
import itertools
import os

import pytest

from peakpoint.base import files
from peakpoint.base.errors import CheckpointError, SaveFailed
from peakpoint.checkpointing.storage import journal, listing, locate, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import manifest
from tests.faults.fault_cases import KILLED, Faulty, in_child, payload, put, sound, tidy

SMALL, LARGE = {"size": 5000, "pieces": 1}, {"size": 12_000, "pieces": 6}


def work(root, say, form):
    """Two checkpoints are there; a third is saved, shared and pointed to, and the first two let go."""
    target = Store(root, "run")
    old = listing.manifests(root)
    saved = None
    try:
        saved = put(target, 3, **form)
        say("saved 3")
        role = target.share(saved, manifest("milestone/best.pt", epoch=3))
        say("shared 3")
        target.set_pointer("training", "latest", saved)
        store.verify(root, role)
        for each in old:
            say(f"deleting {each.epoch}")
            target.delete(each, "replaced")
    except SaveFailed as error:
        say(f"failed {error}")
    except OSError:  # of a deletion: the manager warns and goes on
        say("not deleted")


def prepared(root):
    target = Store(root, "run")
    first = put(target, 1)
    put(target, 2)
    target.set_pointer("training", "latest", first)
    (root / "training" / "mine.pt").write_bytes(b"of the user")
    return target


def count(stated):
    """The number of storage operations of a child that ended by itself."""
    return int(stated[-1].removeprefix("count "))


def calls(stated):
    """Which they were."""
    return stated[-2].split()[1:]


@pytest.fixture(params=["small", "large"])
def form(request, monkeypatch):
    """A checkpoint of one small piece, or of several that go to the disk on the way."""
    if request.param == "small":
        return SMALL
    monkeypatch.setattr(files, "BEHIND", 24_000)
    return LARGE


@pytest.mark.parametrize(
    ("how", "lasting"),
    [("kill", False), ("torn", False), (errno.ENOSPC, False), (errno.EIO, False), (errno.EIO, True)],
    ids=["kill", "torn write", "ENOSPC", "EIO", "EIO from then on"],
)
def test_whatever_the_moment_nothing_that_was_saved_is_lost(tmp_path, how, lasting, form):
    seen = set()
    for at in itertools.count(1):
        root = tmp_path / f"{at}"
        prepared(root)
        code, stated = in_child(
            lambda say, root=root: start(root, say, form), Faulty(at, how, lasting=lasting)
        )
        if code == 0 and at > count(stated):
            assert ("posix_fadvise" in calls(stated)) == (form is LARGE)
            break
        assert code == (KILLED if isinstance(how, str) else 0), (at, stated)
        seen |= set(stated)
        check(root, stated)
        target = Store(root, "run")  # the next start
        assert sound_and_tidy(root)
        again = put(target, 4)
        assert locate.newest_verified(root).manifest.file == again.file
        assert [fact["event"] for fact in journal.read(root)][-1] == "saved"
    assert at > 40
    assert {"saved 3", "shared 3", "deleting 1", "deleting 2"} <= seen
    if isinstance(how, int):
        reported = [line for line in seen if line.startswith(("failed ", "refused "))]
        assert {line.split()[0] for line in reported} == {"failed", "refused"}
        assert all(os.strerror(how) in line for line in reported)
        written = [
            line for line in reported if " cannot be read: " not in line
        ]  # what was saved is read back
        assert all(line.endswith((" are free.", "choose another directory.")) for line in written)


def start(root, say, form):
    """The work, or a start that is refused in one line."""
    try:
        work(root, say, form)
    except CheckpointError as error:
        say(f"refused {error}")


def check(root, stated):
    """What must hold at once, before anybody has tidied up."""
    promised = {1, 2} | ({3} if "saved 3" in stated else set())
    promised -= {int(line.split()[1]) for line in stated if line.startswith("deleting")}
    found = sound(root)
    assert promised <= set(found), stated
    assert set(found) <= {1, 2, 3}
    assert partial(root) == []
    newest = locate.newest_verified(root)
    assert newest.skipped == ()
    assert newest.manifest.epoch == max(found)


def partial(root):
    """Names of checkpoints, with a manifest or without, whose bytes are not whole."""
    wholes = [payload(v, f["size"] * f["pieces"]) for v in (1, 2, 3) for f in (SMALL, LARGE)]
    found = [p for p in root.glob("*/*.pt") if p.name != "mine.pt" and p.exists()]
    return [p.name for p in found if p.read_bytes() not in wholes]


def sound_and_tidy(root):
    user = root / "training" / "mine.pt"
    assert user.read_bytes() == b"of the user"
    user.unlink()
    return sound(root) and tidy(root)


def test_a_store_that_names_before_it_writes_is_caught(tmp_path, monkeypatch):
    """Negative control: under a store that writes in place the same crashes do leave half a file."""

    def in_place(self, roles, produce, *, expected=None):
        path = self.path(roles[0])
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            produce(file)
        return roles

    caught = 0
    for at in range(1, 30):
        root = tmp_path / f"{at}"
        prepared(root)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "save", in_place)
            in_child(lambda say, root=root: start(root, say, SMALL), Faulty(at, "torn"))
        caught += partial(root) == ["c0003.pt"]
    assert caught > 0
