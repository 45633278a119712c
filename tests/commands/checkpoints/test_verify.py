"""verify: every file of a run of the trainer, and everything that can be wrong with one."""

import json
import shutil
from pathlib import Path

import pytest

from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.journal import JOURNAL
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import damage
from tests.faults.fault_cases import ordinary_user

FACTS = {
    "file",
    "tier",
    "tags",
    "reasons",
    "epoch",
    "global_step",
    "metrics",
    "sparsity",
    "bytes",
    "verified",
}


def training(run):
    return sorted((run / "checkpoints" / "training").glob("checkpoint_*.pt"))


def test_a_sound_run_is_sound_as_a_run_a_tree_and_a_file(trained, cli_main):
    count = len(listing.manifests(trained / "checkpoints"))
    for path in (trained, trained / "checkpoints", trained.parent):
        assert cli_main("verify", path).output().startswith(f"{count} checked, 0 bad, ")
    latest = trained / "checkpoints" / "training" / "latest.pt"
    out = cli_main("verify", latest, training(trained)[0].with_suffix(".json")).succeeded().out
    assert out[:16] == "2 checked, 0 bad"


def _flipped(path):
    damage(path)
    return "does not match the digest"


def _cut(path):
    damage(path, flip=False)
    return "and its manifest says"


def _without_manifest(path):
    path.with_suffix(".json").unlink()
    return "has no manifest beside it"


def _without_bytes(path):
    path.unlink()
    return "cannot be read: No such file"


def _broken_manifest(path):
    path.with_suffix(".json").write_text("{")
    return "is not a readable checkpoint manifest"


@pytest.mark.parametrize("harm", [_flipped, _cut, _without_manifest, _without_bytes, _broken_manifest])
def test_a_bad_file_is_one_line_and_exit_code_1(trained, cli_main, harm):
    path = training(trained)[0]
    message = harm(path)
    for where in (trained, trained.parent):
        code, out, err = cli_main("verify", where)
        assert (code, err) == (1, "")
        bad = [line for line in out.splitlines() if line.startswith("bad: ")]
        assert len(bad) == 1
        assert str(path.with_suffix("")) in bad[0]
        assert message in bad[0]
        assert ", 1 bad, " in out.splitlines()[-1]
    found = json.loads(cli_main("verify", trained, "--json").failed().out, parse_constant=pytest.fail)
    assert all(set(m) >= FACTS for m in found)
    wrong = [m for m in found if not m["verified"]]
    assert [m["file"] for m in wrong] == [f"training/{path.name}"]
    assert message in wrong[0]["problem"]
    assert {m["problem"] for m in found if m["verified"]} == {None}
    assert path.exists() == (harm is not _without_bytes)  # nothing is moved


def test_a_bad_file_by_its_name(trained, cli_main):
    path = training(trained)[0]
    damage(path)
    assert cli_main("verify", path)[0] == 1
    assert cli_main("verify", training(trained)[1])[0] == 0
    out = (
        cli_main("verify", path, training(trained)[1], trained / "nowhere.pt", trained / "nothing")
        .failed()
        .out
    )
    assert "4 checked, 3 bad" in out
    for name in ("nowhere.pt", "nothing"):
        assert f"bad: {trained / name} does not exist." in out


@pytest.mark.parametrize("what", ["bytes", "manifest", "folder", "journal"])
def test_what_this_user_may_not_read_is_unreadable_and_not_bad(run, cli_main, what):
    newest = listing.manifests(run / "checkpoints")[-1].file
    places = {"manifest": Path(newest).with_suffix(".json"), "folder": "training", "journal": JOURNAL}
    path = run / "checkpoints" / places.get(what, newest)
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with ordinary_user():
            done = cli_main("verify", str(run))
    finally:
        path.chmod(mode)
    assert done.code == 1
    assert f"unreadable: {path} cannot be read: Permission denied." in done.out
    assert ", 0 bad, " in done.out
    assert "bad: " not in done.out


def test_hard_links_are_read_once_and_all_reported(finished, tmp_path, cli_main):
    best = next((finished / "checkpoints" / "milestone").glob("best_loss_[0-9]*.pt"))
    folder = tmp_path / "run" / "checkpoints" / "milestone"
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        shutil.copy(best.with_suffix(".json"), folder / f"{name}.json")
    shutil.copy(best, folder / "a.pt")
    damage(folder / "a.pt")
    (folder / "b.pt").hardlink_to(folder / "a.pt")
    out = cli_main("verify", tmp_path).failed().out
    assert [line.split()[1] for line in out.splitlines()[:-1]] == [str(folder / "a.pt"), str(folder / "b.pt")]


def test_an_empty_run_is_sound_and_a_folder_of_none_is_an_error(tmp_path, cli_main):
    Store(tmp_path / "run" / "checkpoints", "run")
    assert cli_main("verify", tmp_path).succeeded().out[:16] == "0 checked, 0 bad"
    (tmp_path / "other").mkdir()
    code, out, err = cli_main("verify", tmp_path / "other")
    assert (code, out) == (1, "")
    assert (
        err == f"error: {tmp_path / 'other'} has no checkpoints: name a run directory, such as outputs/RUN.\n"
    )


def test_a_link_to_the_bytes_of_another_checkpoint_is_bad(run, cli_main):
    folder = run / "checkpoints" / "training"
    (folder / "b.pt").unlink()
    (folder / "b.pt").hardlink_to(folder / "a.pt")  # of the same size
    out = cli_main("verify", run).failed().out
    assert [line.split()[1] for line in out.splitlines()[:-1]] == [str(folder / "b.pt")]
