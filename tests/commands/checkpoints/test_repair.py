"""repair: pointers, quarantine and strays, on runs of the trainer that were broken by hand."""

import json
import os

import pytest

from peakpoint.base.files import STAGED_PREFIX
from peakpoint.base.lock import one_writer
from peakpoint.checkpointing.storage import listing, locate, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import damage, saved
from tests.conftest import process
from tests.faults.fault_cases import ordinary_user


def tree(run):
    """Every name below a run and what it is, the lock aside."""
    return {
        str(p.relative_to(run)): str(p.readlink()) if p.is_symlink() else p.is_file() and p.stat().st_size
        for p in run.rglob("*")
        if p.name != ".lock" and p.name != "journal.jsonl"
    }


def test_a_sound_run_is_left_as_it_is(trained, cli_main):
    before = tree(trained)
    assert "0 repairs done" in cli_main("repair", trained).output()
    assert tree(trained) == before


def test_pointers_are_rebuilt_from_manifests_alone(trained, cli_main):
    before = tree(trained)
    root = trained / "checkpoints"
    (root / "training" / "latest.pt").unlink()
    best = root / "milestone" / "best_loss.pt"
    best.unlink()
    best.symlink_to("best_loss.pt")  # a loop
    away = root / "milestone" / "best_accuracy.pt"
    away.unlink()
    away.symlink_to("/etc/hostname")
    (root / "milestone" / "best_recall.pt").symlink_to("nowhere.pt")
    mine = root / "training" / "mine.pt"
    mine.symlink_to(listing.manifests(root)[-1].file.split("/")[1])
    out = cli_main("repair", trained).succeeded().out
    assert (out.count("point  "), out.count("unlink  ")) == (3, 1)
    assert mine.is_symlink()  # somebody's own, and it leads somewhere
    mine.unlink()
    assert tree(trained) == before


def test_a_checkpoint_that_has_the_name_of_a_pointer_is_not_replaced_by_it(tmp_path, cli_main):
    target = Store(tmp_path / "checkpoints", "run")
    first = saved(target, "milestone/best.pt", 1.0, tags=("best",))
    saved(target, "milestone/best_2.pt", 2.0, tags=("best",))
    assert cli_main("repair", tmp_path)[0] == 0
    assert locate.is_sound(tmp_path / "checkpoints", first)
    assert not (tmp_path / "checkpoints" / first.file).is_symlink()


@pytest.mark.parametrize("dry", [True, False])
def test_what_is_bad_goes_to_quarantine_and_the_pointer_to_the_one_before(trained, cli_main, dry):
    root = trained / "checkpoints"
    newest, before = [m for m in listing.manifests(root) if m.tier == "training"][::-1][:2]
    damage(root / newest.file)
    stranger = root / "training" / "stranger.pt"
    stranger.write_bytes(b"put here by hand")
    unreadable = next((root / "milestone").glob("best_loss_*.json"))
    unreadable.write_text("{")
    was = tree(trained)
    out = cli_main("repair", trained, *["--dry-run"] * dry).succeeded().out
    for file in (newest.file, "training/stranger.pt", f"milestone/{unreadable.stem}.pt"):
        assert f"quarantine  {file}: " in out
    assert f"point  training/latest.pt: to {before.file.split('/')[1]}; it named " in out
    assert ("repairs to do" if dry else "repairs done") in out
    if dry:
        assert tree(trained) == was
        return
    assert len(list((root / "quarantine").glob("*.pt"))) == 3
    assert cli_main("verify", trained)[0] == 0
    assert str((root / "training" / "latest.pt").readlink()) == before.file.split("/")[1]
    assert "0 repairs done" in cli_main("repair", trained)[1]


def test_a_checkpoint_that_became_a_link_to_itself_goes_to_quarantine(trained, cli_main):
    root = trained / "checkpoints"
    newest = next(m for m in reversed(listing.manifests(root)) if m.tier == "training")
    (root / newest.file).unlink()
    (root / newest.file).symlink_to(root / newest.file)
    out = cli_main("repair", trained).output()
    assert out.startswith(f"quarantine  {newest.file}")
    assert "point  training/latest.pt" in out
    assert cli_main("repair", trained)[1].startswith(f"{len(listing.manifests(root))} checkpoints are sound")


def test_a_checkpoint_that_may_not_be_read_is_named_and_stays(trained, cli_main):
    root, was = trained / "checkpoints", tree(trained)
    newest = next(m for m in reversed(listing.manifests(root)) if m.tier == "training")
    path = root / newest.file
    path.chmod(0)
    denied = f"error: {path} cannot be read: Permission denied.\n"
    with ordinary_user():
        for command in (("repair", trained), ("repair", trained, "--dry-run"), ("why", path)):
            assert cli_main(*command) == (1, "", denied)
        assert f"unreadable: {path} cannot be read: Permission denied." in cli_main("verify", trained)[1]
    path.chmod(0o644)
    assert tree(trained) == was


def test_what_was_repaired_before_one_fails_is_printed(trained, cli_main, monkeypatch):
    root = trained / "checkpoints"
    newest = next(m for m in reversed(listing.manifests(root)) if m.tier == "training")
    damage(root / newest.file)
    monkeypatch.setattr("peakpoint.base.files.set_link", lambda *_: (root / "gone").stat())
    code, out, err = cli_main("repair", trained)
    assert (code, out.count("\n"), err.count("\n")) == (1, 1, 1)
    assert out.startswith(f"quarantine  {newest.file}")


def test_strays_of_dead_writers_are_swept_and_those_of_living_ones_stay(trained, cli_main):
    root = trained / "checkpoints"
    program = "import os, sys\nfrom pathlib import Path\nfrom peakpoint.base.files import Staged\n"
    program += "for target in sys.argv[1:]:\n    Staged(Path(target)).write(b'half')\nos._exit(9)"
    places = [root / "training" / "x.pt", root / "metadata" / "x.json", trained / "status.json"]
    done = process("-c", program, *places)
    assert done.returncode == 9
    living = store.Staged(root / "training" / "y.pt")
    assert len(list(trained.rglob(f"{STAGED_PREFIX}*"))) == 4
    assert cli_main("repair", trained, "--dry-run")[1].count("sweep  ") == 3
    assert cli_main("repair", trained)[0] == 0
    assert list(trained.rglob(f"{STAGED_PREFIX}*")) == [living.path]
    living.__exit__(None, None, None)


def test_it_refuses_while_a_writer_holds_the_run(trained, cli_main):
    (trained / "checkpoints" / "training" / "latest.pt").unlink()
    for folder in (trained, trained / "checkpoints"):  # the trainer's lock, and the library's
        with one_writer(folder):
            code, out, err = cli_main("repair", trained)
            assert (code, out) == (1, "")
            assert f"is being written by process {os.getpid()} on" in err
            assert cli_main("repair", trained, "--dry-run")[0] == 0
    assert cli_main("repair", trained)[0] == 0


def test_a_run_without_one_sound_checkpoint_is_exit_code_1(run, cli_main):
    for path in (run / "checkpoints").glob("*/*.pt"):
        if not path.is_symlink():
            damage(path)
    found = json.loads(cli_main("repair", run, "--json").failed().out)
    assert [r["action"] for r in found] == ["quarantine"] * 3 + ["unlink"]
    assert [p.name for p in (run / "checkpoints" / "training").iterdir()] == []


def test_a_deletion_that_was_cut_short_is_completed_and_reported_before(trained, cli_main):
    root = trained / "checkpoints"
    oldest = next(m for m in listing.manifests(root) if m.tier == "training")
    path = root / oldest.file
    path.with_suffix(".json").rename(path.with_name(f"{STAGED_PREFIX}1-abcd{store.CLAIM}"))
    out = cli_main("repair", trained, "--dry-run").succeeded().out
    assert f"sweep  {oldest.file}: a save or a deletion of it was cut short" in out
    assert "quarantine" not in out
    assert path.exists()
    assert ("quarantine" in cli_main("repair", trained).succeeded().out, path.exists()) == (False, False)
    assert cli_main("verify", trained)[0] == 0
