"""why and gc: what the policies of a run keep, and what became of the rest."""

import json
import os

import pytest

from peakpoint.base import registry
from peakpoint.base.lock import one_writer
from peakpoint.checkpointing.storage import listing, locate, quarantine
from peakpoint.commands.checkpoints import retention
from tests.checkpointing.checkpoint_cases import damage, manifest
from tests.checkpointing.policies import policy_cases as case
from tests.conftest import process


def files(root):
    return {m.file for m in listing.manifests(root)}


def config(keep_last, **more):
    """A saved configuration of one interval policy."""
    policy = {"interval": {"epochs": 1, "steps": None, "keep_last": keep_last}, **more}
    return {"checkpoint": {"policy": policy}}


@pytest.fixture
def generous(world):
    """Five epochs that were all kept, whose saved configuration keeps only the last two."""
    made = world(interval=case.interval(epochs=1, keep_last=5))
    made.extra["config"] = config(2)
    for accuracy in (0.1, 0.2, 0.3, 0.4, 0.5):
        made.epoch(accuracy)
    made.manager.drain()
    return made


def test_a_run_that_collected_its_own_has_nothing_to_delete(trained, cli_main):
    before = files(trained / "checkpoints")
    found = json.loads(cli_main("gc", trained, "--dry-run", "--json").succeeded().out)
    assert {m["file"] for m in found if m["kept"]} == before == {m["file"] for m in found}
    assert cli_main("gc", trained)[0] == 0
    assert files(trained / "checkpoints") == before


def test_gc_deletes_what_no_policy_keeps_and_says_so_before(generous, cli_main):
    root, before = generous.root, files(generous.root)
    lines = cli_main("gc", root, "--dry-run").succeeded().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["would"] * 3 + ["keep"] * 2
    assert lines[0].endswith(": no policy keeps it")
    assert lines[-2].endswith("one of the last 2 of interval")
    assert lines[-1].startswith("3 of 5 would go, ")
    assert files(root) == before
    out = cli_main("gc", root).succeeded().out
    assert (out.count("deleted  "), out.splitlines()[-1][:14]) == (3, "3 of 5 deleted")
    assert files(root) == {m.file for m in generous.kept} == set(sorted(before)[-2:])
    gone = sorted(before)[0]
    out = cli_main("why", root / gone).succeeded().out
    assert [line.split()[0] for line in out.splitlines()] == ["saved", "deleted"]
    assert out.splitlines()[1].endswith(f"{gone}: no policy keeps it")


def test_bytes_that_a_kept_name_shares_are_not_counted_as_freed():
    shared, alone = (manifest("training/a.pt", bytes=size, digest=str(size)) for size in (100, 30))
    twin = manifest("milestone/b.pt", bytes=100, digest="100")
    rows = [(shared, []), (twin, ["the best"]), (alone, []), (alone, [])]
    assert retention._freed(rows) == 30


def test_gc_deletes_nothing_while_the_newest_is_damaged_or_the_run_is_written(generous, cli_main):
    root, before = generous.root, files(generous.root)
    with one_writer(root.parent):
        err = cli_main("gc", root).failed().err
        assert files(root) == before
        assert f"is being written by process {os.getpid()}" in err
        assert cli_main("gc", root, "--dry-run")[0] == 0
    damage(root / generous.kept[-1].file)
    code, out, err = cli_main("gc", root)
    assert (code, out) == (1, "")
    assert "does not match the digest" in err
    assert files(root) == before


def test_gc_keeps_what_a_policy_that_is_not_known_here_asked_for(world, cli_main):
    made = world(mine=case.interval(epochs=1, keep_last=5))
    made.extra["config"] = config(1, mine={"colour": "blue"})
    made.epoch(0.5)
    made.epoch(0.6)
    made.manager.drain()
    out = cli_main("gc", made.root).succeeded().out
    assert len(made.kept) == 2
    assert "its policy mine is a plugin's, which is not asked here" in out


def test_gc_of_a_run_that_does_not_say_what_it_keeps_deletes_nothing(run, cli_main):
    code, out, err = cli_main("gc", run)
    assert (code, out) == (1, "")
    assert "does not say which policies keep what" in err
    assert len(files(run / "checkpoints")) == 3
    out = cli_main("why", run / "checkpoints" / "training" / "a.pt").succeeded().out
    assert out.splitlines()[0] == "saved  interval: epoch 1, every 1"
    assert out.splitlines()[1].startswith("kept   not known: ")
    assert "has no checkpoints" in cli_main("gc", run.parent).failed().err


def test_why_names_the_policy_of_each_checkpoint(trained, cli_main):
    root = trained / "checkpoints"
    words = {
        "milestone/best_loss.pt": "number 1 of 1 for best_loss: ",
        "milestone/best_accuracy.pt": "number 1 of 1 for best_accuracy: ",
        "milestone/top_k.pt": "of the best 3 by accuracy",
        "training/latest.pt": "one of the last 2 of interval",
    }
    for file, reason in words.items():
        out = cli_main("why", root / file).output()
        assert any(line.startswith("kept   ") and reason in line for line in out.splitlines())
    found = json.loads(cli_main("why", root / "milestone" / "best_loss.pt", "--json")[1])
    assert found["verified"] is True
    assert found["kept"]


def test_why_of_what_nothing_keeps(generous, cli_main):
    first = generous.kept[0]
    out = cli_main("why", generous.root / first.file).succeeded().out
    assert out.splitlines()[-1] == "kept   by nothing: the next save deletes it"


def test_why_of_a_file_in_quarantine_by_either_name(trained, cli_main):
    root = trained / "checkpoints"
    newest = listing.manifests(root)[-1].file
    damage(root / newest)
    code, out, err = cli_main("why", root / newest)
    assert (code, out) == (1, "")
    assert "does not match the digest" in err
    quarantine.set_aside(root, locate.newest_verified(root).skipped)
    aside = next((root / "quarantine").glob("*.pt"))
    for path in (aside, root / newest):
        out = cli_main("why", path).succeeded().out
        assert f"{newest}: " in out
        assert "does not match the digest" in out
    (root / "metadata" / "journal.jsonl").unlink()
    assert "does not match the digest" in cli_main("why", root / newest)[1]
    message = json.loads(cli_main("why", aside, "--json")[1])
    assert [(t["event"], t["file"]) for t in message] == [("quarantined", newest)]


def test_why_of_a_file_that_never_was(trained, cli_main):
    for path in ("checkpoints/training/never.pt", "never.pt", "checkpoints/quarantine/never.pt"):
        code, out, err = cli_main("why", trained / path)
        assert (code, out) == (1, "")
        assert "does not exist, and neither journal nor quarantine knows of it" in err


def test_a_file_that_is_gone_needs_no_torch(generous, cli_main):
    gone = generous.kept[0].file
    cli_main("gc", generous.root)
    arguments = ["why", str(generous.root / gone)]
    program = f"import sys; from peakpoint.commands.dispatch import main; code = main({arguments})"
    program += "; sys.exit(code or 'torch' in sys.modules)"
    done = process("-c", program)
    assert done.returncode == 0


def test_every_policy_is_built_from_what_a_run_saved(whole_run, cli_main):
    saved = json.loads((whole_run / "run.json").read_text())["config"]["checkpoint"]["policy"]
    assert set(saved) <= set(registry.table("policy"))
    found = json.loads(cli_main("gc", whole_run, "--dry-run", "--json")[1])
    reasons = "; ".join(reason for m in found for reason in m["kept"])
    for word in ("of the last 100 of interval", "for best_loss", "best 3 by accuracy", "at_sparsity_0.70"):
        assert word in reasons


def test_the_counters_of_the_policies_count(world, cli_main):
    """A run that went on from before its best file trails it, and its own best stays all the same."""
    made = world(best=case.best(accuracy="max"))
    best = {"metrics": {"accuracy": {"mode": "max", "min_delta": 0.0}}, "keep": 1}
    made.extra["config"] = {"checkpoint": {"policy": {"best": best}}}
    made.epoch(0.5)
    before = made.counters
    made.epoch(0.9)
    made.attempt().manager.load_state_dict(before)
    made.epoch(0.6)
    milestones = {m.file for m in made.kept if m.tier == "milestone"}
    assert len(milestones) == 2
    found = json.loads(cli_main("gc", made.root, "--dry-run", "--json")[1])
    assert {m["file"] for m in found if m["kept"] and m["tier"] == "milestone"} == milestones
    assert any("the current best_accuracy: 0.6000" in reason for m in found for reason in m["kept"])
