"""The newest of a run is its newest sound checkpoint; what is damaged or half-written is set aside."""

import shutil

import pytest

from peakpoint.base import files
from peakpoint.base.errors import Denied, FormatError
from peakpoint.checkpointing.storage import listing, locate, quarantine, store
from peakpoint.checkpointing.storage.manifest import sealed
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import damage, saved
from tests.faults.fault_cases import ordinary_user


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda p: damage(p), "does not match the digest"),
        (lambda p: damage(p, flip=False), "bytes and its manifest says"),
        (lambda p: p.write_bytes(b""), "has 0 bytes"),
        (lambda p: p.unlink(), "cannot be read: No such file"),
        (lambda p: p.with_suffix(".json").write_text("{"), "not a readable checkpoint manifest"),
        (lambda p: p.with_suffix(".json").write_bytes(b"\x00\xff" * 20), "not a readable checkpoint"),
        (lambda p: p.with_suffix(".json").write_text("[]"), "not a readable checkpoint manifest"),
    ],
    ids=["flipped", "cut", "empty", "gone", "torn manifest", "binary manifest", "list manifest"],
)
def test_a_damaged_newest_is_set_aside_and_the_one_before_is_used(target, harm, reason):
    before, last = saved(target, "training/a.pt", 1.0), saved(target, "training/b.pt", 2.0)
    harm(target.path(last))
    remains = target.path(last).read_bytes() if target.path(last).exists() else None
    found = locate.newest_verified(target.root)
    assert found.manifest.file == before.file
    ((name, why),) = found.skipped
    assert name == last.file
    assert reason in why
    assert not (target.root / quarantine.QUARANTINE).exists()  # who only reads moves nothing
    assert quarantine.set_aside(target.root, found.skipped) == [last.file]
    folder = target.root / quarantine.QUARANTINE
    assert not target.path(last).exists()
    assert not target.path(last).with_suffix(".json").exists()
    assert [p.read_bytes() for p in folder.glob("*.pt")] == ([] if remains is None else [remains])
    assert reason in next(folder.glob("*.txt")).read_text()
    assert locate.newest_verified(target.root).skipped == ()


def test_two_quarantined_files_of_one_name_are_both_kept(target):
    for value in (1.0, 2.0):
        damage(target.path(saved(target, "training/a.pt", value)))
        quarantine.set_aside(target.root, locate.newest_verified(target.root).skipped)
        assert listing.manifests(target.root) == []
    assert len(list((target.root / quarantine.QUARANTINE).glob("*.pt"))) == 2


def test_nothing_there_is_nothing_found(tmp_path):
    assert locate.newest_verified(tmp_path / "nowhere") == locate.Found(None, ())
    assert listing.manifests(tmp_path / "nowhere") == []


def test_the_newest_of_a_run_is_no_other_runs(target):
    saved(target)
    saved(Store(target.root, "other"), "training/b.pt")
    found = locate.newest_verified(target.root, "run")
    assert found.manifest.file == "training/a.pt"
    assert found.others == ("training/b.pt",)
    assert locate.newest_verified(target.root).manifest.file == "training/b.pt"


def test_bytes_without_a_manifest_are_no_checkpoint(target):
    before = saved(target, "training/a.pt")
    shutil.copy(target.path(before), target.root / "training" / "zz.pt")
    assert locate.newest_verified(target.root).manifest.file == before.file


def test_half_written_files_of_a_killed_process_are_swept_and_nothing_else(target):
    keep = saved(target)
    stray = target.root / "training" / f"{files.STAGED_PREFIX}123-abc"
    stray.write_bytes(b"half")
    note = target.root / "training" / "notes.txt"
    note.write_text("mine")
    Store(target.root, "run")
    assert not stray.exists()
    assert note.exists()
    store.verify(target.root, keep)


def test_what_another_run_left_half_done_is_left_to_it(target):
    other = Store(target.root, "other")
    path = target.path(saved(other, "training/b.pt"))
    claim = path.with_suffix(".json").rename(path.with_name(f"{files.STAGED_PREFIX}1-ab{store.CLAIM}"))
    Store(target.root, "run")
    assert path.exists()
    assert claim.exists()
    Store(target.root, "other")
    assert not path.exists()
    assert not claim.exists()


def test_what_another_version_wrote_is_not_taken_for_damaged(target):
    mark = target.path(saved(target)).with_suffix(".json")
    body = mark.read_text().replace('"format": 2', '"format": 3')
    mark.write_text(sealed(body.rpartition(',\n  "check": ')[0] + "}"))
    with pytest.raises(FormatError, match="is of format 3, and this version reads up to 2"):
        locate.newest_verified(target.root)
    assert Store(target.root, "run").sequence == 1  # its place in the order is not given twice
    assert sorted(p.name for p in mark.parent.iterdir()) == ["a.json", "a.pt"]
    assert not (target.root / "quarantine").exists()


@pytest.mark.parametrize("end", [".pt", ".json"])
def test_what_may_not_be_read_is_not_taken_for_damaged(target, end):
    saved(target, "training/a.pt")
    path = target.path(saved(target, "training/b.pt"))
    path.with_suffix(end).chmod(0)
    with ordinary_user(), pytest.raises(Denied, match=rf"b\{end} cannot be read: Permission denied\."):
        locate.newest_verified(target.root)
    with ordinary_user():
        assert quarantine.set_aside(target.root, [("training/b.pt", "a reader thought so")]) == []
        with pytest.raises(Denied):
            locate.locate(target.root / "training" / "latest.pt")
    assert locate.newest_verified(target.root).manifest.file == "training/b.pt"
