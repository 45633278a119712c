"""What happened is written down, and writing it down never stands in the way."""

import json

import pytest

from peakpoint.checkpointing.storage import journal, locate, quarantine, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import World, damage, files_no_larger_than, manifest
from tests.checkpointing.policies import policy_cases as case
from tests.faults.fault_cases import put


def reported(root, event):
    return [(f["file"], f["reason"]) for f in journal.read(root) if f["event"] == event]


def test_a_deleted_checkpoint_leaves_the_reason_behind(tmp_path):
    run = World(tmp_path, interval=case.interval(epochs=1, keep_last=1).build())
    run.epoch(0.5)
    run.epoch(0.6)
    run.manager.close()
    first, second = (f"training/checkpoint_epoch_000{i}_step_000000{i}0.pt" for i in (1, 2))
    saved = reported(tmp_path, "saved")
    assert [file for file, _ in saved] == [first, second]
    ((gone, why),) = reported(tmp_path, "deleted")
    assert gone == first
    assert why == f"no longer kept by interval (saved for: {saved[0][1]}); replaced by {second}"
    assert [f["sequence"] for f in journal.read(tmp_path)] == [1, 2, 1]
    assert all(f["time"].endswith("+00:00") for f in journal.read(tmp_path))


def test_quarantine_and_resume_are_facts_too(tmp_path):
    run = World(tmp_path, interval=case.interval(epochs=1, keep_last=5).build())
    run.epoch(0.5)
    run.epoch(0.6)
    first, second = run.kept
    damage(tmp_path / second.file)
    assert quarantine.set_aside(tmp_path, locate.newest_verified(tmp_path).skipped) == [second.file]
    run.attempt(resumed_from=first.file).manager.load_state_dict({})
    ((file, reason),) = reported(tmp_path, "quarantined")
    assert file == second.file
    assert "does not match the digest" in reason
    assert reported(tmp_path, "resumed") == [(first.file, "the run continues from it")]


def test_a_torn_line_is_passed_over_and_the_next_one_stands_on_its_own(tmp_path):
    target = Store(tmp_path, "run")
    put(target, 1)
    path = tmp_path / "metadata" / "journal.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole + whole[:cut])
        journal.append(target.root, "saved", "training/x.pt", "next")
        facts = journal.read(tmp_path)
        assert [f["file"] for f in facts if f["reason"] == "next"] == ["training/x.pt"]
        assert len(facts) == 2 + (cut == len(whole) - 1)
    path.write_bytes(b"\xff\xfe\n[1]\n" + whole)
    assert len(journal.read(tmp_path)) == 1


def test_no_journal_is_an_empty_one(tmp_path):
    assert journal.read(tmp_path / "nowhere") == []


@pytest.mark.parametrize("harm", ["full", "folder", "in the way", "link"])
def test_a_line_that_cannot_be_written_fails_nothing(tmp_path, harm):
    target = Store(tmp_path / "c", "run")
    metadata = tmp_path / "c" / "metadata"
    (tmp_path / "precious").write_text("of the user")
    if harm == "folder":
        metadata.write_text("a file")
    elif harm == "in the way":
        (metadata / "journal.jsonl").mkdir(parents=True)
    elif harm == "link":
        metadata.mkdir()
        (metadata / "journal.jsonl").symlink_to(tmp_path / "precious")
    elif harm == "full":
        metadata.mkdir()
        (metadata / "journal.jsonl").write_bytes(b"\n" * 9000)
    with files_no_larger_than(9000):
        done = put(target, 1)
        target.delete(target.share(done, manifest("milestone/b.pt")), "because")
    store.verify(target.root, done)
    assert journal.read(target.root) == []
    assert (tmp_path / "precious").read_text() == "of the user"


def test_lines_of_two_writers_do_not_mix(tmp_path):
    stores = [Store(tmp_path, run) for run in ("a", "b")]
    for i in range(50):
        journal.append(stores[i % 2].root, "saved", f"training/{i}.pt", "x" * 500)
    lines = (tmp_path / "metadata" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["file"] for line in lines] == [f"training/{i}.pt" for i in range(50)]
