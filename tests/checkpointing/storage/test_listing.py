"""A folder of checkpoints is listed once a save, and a manifest read once while it stays the same."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from peakpoint import CheckpointManager
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.remote import background
from peakpoint.checkpointing.remote.client import Remote
from peakpoint.checkpointing.storage import listing, locate
from peakpoint.checkpointing.storage.listing import Index
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands.dispatch import main
from tests.checkpointing.checkpoint_cases import World, saved
from tests.checkpointing.policies import policy_cases as case
from tests.faults.fault_cases import put


@pytest.fixture
def listed(monkeypatch):
    """How often each tier's folder was listed, by whatever means."""
    counts: Counter[str] = Counter()

    def counted(name):
        real = getattr(os, name)

        def call(path=".", *rest):
            if Path(path).name in ("training", "milestone"):
                counts[Path(path).name] += 1
            return real(path, *rest)

        monkeypatch.setattr(os, name, call)

    counted("scandir")
    counted("listdir")
    return counts


@pytest.fixture
def read(monkeypatch):
    """How often each manifest was read."""
    counts: Counter[str] = Counter()
    real = listing.read_manifest

    def call(path):
        counts[path.name] += 1
        return real(path)

    monkeypatch.setattr(listing, "read_manifest", call)
    return counts


def test_a_save_lists_the_folders_once_and_reads_what_is_new(tmp_path, listed, read):
    world = World(
        tmp_path,
        interval=case.interval(epochs=1, keep_last=2).build(),
        best=case.best(accuracy="max").build(),
        top_k=case.top_k(2).build(),
    )
    world.epoch(0.5)
    for epoch in range(2, 6):
        listed.clear()
        read.clear()
        world.epoch(0.5 + epoch / 100)
        world.manager.drain()
        assert listed == {"training": 1, "milestone": 1}
        assert set(read.values()) == {1}
        assert all(f"epoch_{epoch:04d}" in name for name in read)
    assert world.files("training")  # and retention saw all of them
    assert len(world.files("training")) == 2


def test_an_epoch_without_a_save_lists_nothing(tmp_path, listed):
    world = World(tmp_path, interval=case.interval(epochs=3).build())
    world.epoch(0.5)  # it begins with a look at what is there
    listed.clear()
    world.epoch(0.5)
    world.manager.drain()
    assert listed == {}


def test_a_save_of_the_library_lists_the_folders_once(tmp_path, listed, read):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    manager = CheckpointManager(tmp_path, max_training_checkpoints=2)
    manager.save_training_checkpoint(model, optimizer, epoch=1, step=1)
    for step in range(2, 5):
        listed.clear()
        read.clear()
        manager.save_training_checkpoint(model, optimizer, epoch=1, step=step)
        assert listed == {"training": 1, "milestone": 1}
        assert sum(read.values()) == 1
    assert len(manager.list_checkpoints()["training"]) == 2


def test_a_mirror_that_has_nothing_to_copy_reads_nothing(tmp_path, read):
    target = Store(tmp_path / "run" / "checkpoints", "run")
    for number in range(3):
        saved(target, f"milestone/c{number}.pt")
    place = Remote(f"file://{tmp_path / 'far'}", timeout_s=10, key="checkpoint.mirror")
    copies = background.Mirror(target, place, what={"milestone"}, keep=None, queue=10, wait_s=1)
    assert len(copies.pending()) == 3
    read.clear()
    assert len(copies.pending()) == 3
    assert read == {}


def test_what_others_do_in_the_folder_is_seen(tmp_path):
    target = Store(tmp_path, "run")
    first, second = saved(target, "training/a.pt"), saved(target, "training/b.pt")
    known = Index(tmp_path)
    assert [m.file for m in known.manifests()] == ["training/a.pt", "training/b.pt"]
    assert known.manifests()[0] is known.manifests()[0]  # not read again
    target.path(first).with_suffix(".json").unlink()
    assert [m.file for m in known.manifests()] == ["training/b.pt"]
    other = Store(tmp_path.with_name("other"), "run")
    saved(other, "training/x.pt")
    put = saved(other, "training/b.pt", epoch=7)
    other.path(put).with_suffix(".json").replace(target.path(second).with_suffix(".json"))
    assert [m.epoch for m in known.manifests()] == [7]
    mark = target.path(second).with_suffix(".json")
    mark.write_text(mark.read_text().replace('"epoch": 7', '"epoch": 8'))
    assert known.manifests() == []
    assert [file for file, _ in known.unreadable()] == ["training/b.pt"]
    mark.unlink()
    assert known.manifests() == []
    assert known.unreadable() == []


def test_a_name_that_is_used_again_is_read_again(tmp_path):
    target = Store(tmp_path, "run")
    for epoch in range(1, 20):
        made = saved(target, "training/a.pt", epoch=epoch)
        (there,) = target.mine()
        assert (there.epoch, there.digest) == (epoch, made.digest)
        target.delete(made)
        assert target.mine() == []


def test_ls_and_verify_read_each_manifest_once(tmp_path, read, listed, capsys):
    target = Store(tmp_path, "run")
    for number in range(5):
        saved(target, f"training/c{number}.pt")
    read.clear()
    listed.clear()
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("\nc") == 5
    assert set(read.values()) == {1}
    assert sum(read.values()) == 5
    assert listed["training"] == 1
    read.clear()
    assert main(["verify", str(tmp_path)]) == 0
    assert set(read.values()) == {1}


def test_a_resume_reads_each_manifest_once_to_find_its_start(tmp_path, read, listed):
    target = Store(tmp_path, "run")
    for number in range(5):
        saved(target, f"training/c{number}.pt")
    read.clear()
    listed.clear()
    found = locate.newest_verified(tmp_path)
    assert found.manifest.file == "training/c4.pt"
    assert set(read.values()) == {1}
    assert listed == {"training": 1, "milestone": 1}


def test_what_failed_to_be_read_once_is_read_again_and_keeps_its_place(tmp_path, monkeypatch):
    first = Store(tmp_path, "run")
    put(first, 1)
    put(first, 2)
    read, failed = listing.read_manifest, []

    def fails_once(path):
        if "c0002" in path.name and not failed:
            failed.append(path)
            raise CheckpointError("Input/output error")
        return read(path)

    monkeypatch.setattr(listing, "read_manifest", fails_once)
    again = Store(tmp_path, "run")
    assert failed
    assert put(again, 3).sequence == 3
    assert [m.epoch for m in again.mine()] == [1, 2, 3]


@pytest.mark.parametrize("file", [None, "training/latest.pt"])
def test_a_resume_of_a_run_reads_each_manifest_once(whole_run, train, tmp_path, read, file):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run, symlinks=True)
    there = {path.name for path in run.glob("checkpoints/*/*.json")}
    read.clear()
    train(f"resume={run}{f'/checkpoints/{file}' if file else ''}", "epochs=4", "max_steps=25").succeeded()
    assert {read[name] for name in there if (run / "checkpoints" / "training" / name).exists()} == {1}


def test_nothing_new_lies_inside_a_folder_of_checkpoints(tmp_path):
    saved(Store(tmp_path / "ckpts", "run"))
    begun = tmp_path / "begun" / "checkpoints"
    begun.mkdir(parents=True)
    (begun.parent / "run.json").write_text(json.dumps({"run": "begun"}))
    foreign = tmp_path / "other" / "training"
    foreign.mkdir(parents=True)
    (foreign / "config.json").write_text("{}")  # of another program
    (tmp_path / "link").symlink_to(tmp_path / "ckpts")
    for free in ("ckpts", "begun/out", "begun/checkpoints", "other/training/out"):
        listing.check_outside(tmp_path / free)
    for taken in ("ckpts/training", "ckpts/a/b.pt", "link/out", "begun/checkpoints/production"):
        with pytest.raises(CheckpointError, match="lies among the checkpoints under"):
            listing.check_outside(tmp_path / taken)
    with pytest.raises(CheckpointError, match="lies among the checkpoints"):
        Store(tmp_path / "ckpts" / "training" / "new", "run")
    assert not (tmp_path / "ckpts" / "training" / "new").exists()
