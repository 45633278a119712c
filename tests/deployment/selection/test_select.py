"""Selection on a real run: who is chosen, who is rejected and why, and what is measured again."""

import math
import re
import shutil
from dataclasses import replace

import pytest
import torch

from peakpoint import CheckpointManager
from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.deployment.selection import rules, select
from peakpoint.deployment.selection.measure import differences
from tests.checkpointing.trained_releases import flip_a_byte, released

FINAL, MIDDLE, EARLY = 66, 44, 22
BEST = {"rank": ["accuracy"], "require": [], "tie": None}


def by(**changes):
    """Return the rules of the default with other keys."""
    plain = {
        **BEST,
        "verify": {"tolerance": 0.002},
        "latency": {"batch": 1, "repeats": 3, "warmup": 1},
        **changes,
    }
    return rules.parsed(plain, "mine.yaml")


def at(run, step):
    """Return the candidate of a step."""
    return next(c for c in select.candidates(run / "checkpoints") if c.manifest.global_step == step)


def steps(found):
    """Return the steps of those that qualified, best first."""
    return [c.manifest.global_step for c in found.candidates if c.rank]


def reasons(found, step):
    return next(c.rejected for c in found.candidates if c.manifest.global_step == step)


def break_all(run, step):
    """Damage the file of a step under each of its names."""
    for manifest in listing.manifests(run / "checkpoints"):
        if manifest.global_step == step:
            flip_a_byte(run / "checkpoints" / manifest.file)


def claim(run, step, **changes):
    """Change the manifests of a step, and seal them anew."""
    for manifest in listing.manifests(run / "checkpoints"):
        if manifest.global_step == step:
            mark = (run / "checkpoints" / manifest.file).with_suffix(".json")
            mark.write_text(replace(manifest, **changes).to_json())


def release(run, version, metrics):
    """Release a champion by the library: it has metrics, and no data."""
    root = run / "checkpoints"
    CheckpointManager(root).save_production_checkpoint(
        torch.nn.Linear(3, 2), version=version, config={}, metrics=metrics, model_card={}
    )
    aliases.assign(root, aliases.CHAMPION, version, "a test")


def test_the_default_takes_the_best_at_the_target_and_measures_it_again(measured_run):
    found = select.choose([measured_run], rules.load())
    root, manifest = found.winner
    assert (root, manifest.tier, manifest.global_step) == (measured_run / "checkpoints", "milestone", FINAL)
    assert found.measured.metrics["accuracy"] == pytest.approx(manifest.metrics["accuracy"])
    assert found.measured.metrics["sparsity"] == pytest.approx(manifest.sparsity)
    assert (found.measured.samples, found.measured.split) == (60, "val")
    assert steps(found) == [FINAL]
    assert ": it must be at least the target (0.6)" in reasons(found, EARLY)[0]
    assert found.notes == ("there is no champion yet: 1 rule against it skipped",)
    # One candidate for all roles of the same bytes.
    assert len(found.candidates) == 3


def test_nothing_qualifies_is_reported_with_every_rule_that_rejected(measured_run):
    found = select.choose([measured_run], rules.load("best_practice"))
    assert (found.winner, found.measured) == (None, None)
    assert len(found.candidates) == 3
    assert all(candidate.rejected for candidate in found.candidates)
    assert [(r.split()[0], r.split(": it must be ")[1]) for r in reasons(found, EARLY)] == [
        ("accuracy", "above 0.7"),
        ("sparsity", "at least 0.5"),
        ("epoch", "above 20"),
    ]
    assert found.nothing() == "Nothing qualifies by best_practice.yaml: all 3 candidates are rejected."


def test_a_damaged_winner_is_rejected_and_the_next_is_taken(measured_copy):
    break_all(measured_copy, FINAL)
    before = {path: path.lstat().st_mtime_ns for path in measured_copy.rglob("*")}
    found = select.choose([measured_copy], by())
    assert "its bytes changed" in reasons(found, FINAL)[0]
    assert found.winner[1].global_step == MIDDLE
    assert steps(found) == [MIDDLE, EARLY]
    assert {path: path.lstat().st_mtime_ns for path in measured_copy.rglob("*")} == before


def test_a_twin_with_the_same_bytes_stands_in_for_a_damaged_file(measured_copy):
    first = at(measured_copy, FINAL)
    assert len(first.twins) == 4  # the other milestones, and the training checkpoint
    for manifest in (first.manifest, *first.twins[:-1]):
        flip_a_byte(measured_copy / "checkpoints" / manifest.file)
    found = select.choose([measured_copy], by())
    assert found.winner[1].file == first.twins[-1].file
    assert "has the same bytes, intact" in found.notes[0]
    assert not reasons(found, FINAL)


def test_a_manifest_that_cannot_be_read_is_passed_over_with_a_word_of_it(measured_copy):
    mark = at(measured_copy, EARLY).path.with_suffix(".json")
    mark.write_text(mark.read_text().replace('"epoch": 2', '"epoch": 9'))
    found = select.choose([measured_copy], by(), dry_run=True)
    assert len(found.candidates) == 2
    assert found.notes[0].startswith(f"skipped: {mark} is not a readable checkpoint manifest: it was")


def test_a_manifest_that_promises_too_much_is_refused(measured_copy):
    truth = at(measured_copy, EARLY).facts["accuracy"]
    claim(measured_copy, EARLY, metrics={"accuracy": 0.9})
    found = select.choose([measured_copy], by())
    assert f"accuracy was recorded as 0.9, and is {truth:.6g}" in reasons(found, EARLY)[0]
    assert found.winner[1].global_step == FINAL
    # Without the evaluation nobody notices.
    assert select.choose([measured_copy], by(), dry_run=True).winner[1].global_step == EARLY
    tolerant = by(verify={"tolerance": 0.9})
    assert select.choose([measured_copy], tolerant).winner[1].global_step == EARLY


def test_above_1_the_tolerance_is_a_part_of_the_recorded_value():
    recorded, measured = {"loss": 200.0, "accuracy": 0.5, "wer": 1.0}, {"loss": 205.0, "accuracy": 0.52}
    assert differences(recorded, measured, 0.03) == []
    assert differences(recorded, measured, 0.021) == ["loss was recorded as 200, and is 205"]
    assert len(differences({"loss": math.nan}, {"loss": 1.0}, 0.9)) == 1


def test_a_sparsity_that_the_weights_have_not_is_refused(measured_copy):
    claim(measured_copy, EARLY, sparsity=0.99)
    found = select.choose([measured_copy], by(rank=["sparsity"]))
    assert "sparsity was recorded as 0.99, and is 0.47998" in reasons(found, EARLY)[0]
    assert found.winner[1].global_step == FINAL


def test_nan_never_qualifies_and_what_is_missing_is_named(measured_copy):
    claim(measured_copy, FINAL, metrics={"accuracy": math.nan, "f1_score": 1.0})
    claim(measured_copy, EARLY, metrics={"loss": 1.0})
    found = select.choose(
        [measured_copy],
        by(rank=["f1_score"], require=[{"metric": "accuracy", "min": 0.1}]),
    )
    assert reasons(found, FINAL) == ["accuracy is nan: it must be at least 0.1"]
    assert reasons(found, EARLY) == [
        "accuracy is not recorded: it must be at least 0.1",
        "rank f1_score: f1_score is not recorded",
    ]
    assert found.winner[1].global_step == MIDDLE


def test_a_metric_that_nobody_recorded_is_a_mistake_in_the_rules(measured_run):
    with pytest.raises(CheckpointError, match=r"recorded acuracy: did you mean accuracy\?"):
        select.choose([measured_run], by(rank=["-acuracy"]))
    with pytest.raises(
        CheckpointError, match=r"The name acuracy does not say .*: did you mean accuracy\? If not"
    ):
        select.choose([measured_run], by(rank=["acuracy"]))
    with pytest.raises(CheckpointError, match=r"recorded WER; there are: accuracy, bytes, epoch"):
        select.choose([measured_run], by(require=[{"metric": "WER", "max": 3}]))


def test_within_the_interval_the_sparser_is_preferred(measured_copy):
    # Honest numbers, and the tie is real: 0.6167 of 60 lies within the interval of 0.6333.
    assert at(measured_copy, FINAL).facts["accuracy"] > at(measured_copy, MIDDLE).facts["accuracy"]
    tie = {"metric": "accuracy", "confidence": 0.95, "prefer": {"metric": "sparsity", "mode": "min"}}
    found = select.choose([measured_copy], by(tie=tie))
    assert steps(found) == [MIDDLE, FINAL, EARLY]
    names = [re.escape(at(measured_copy, step).manifest.file) for step in (MIDDLE, FINAL)]
    (note,) = (note for note in found.notes if note.startswith("tie: "))
    assert re.match(
        f"tie: {names[0]} with accuracy 61.67% is preferred to {names[1]} with 63.33%, which differs by no "
        "more than the 95% confidence interval: by -sparsity. tie: null",
        note,
    )
    assert steps(select.choose([measured_copy], by(tie={**tie, "prefer": "sparsity"}))) == [
        FINAL,
        MIDDLE,
        EARLY,
    ]
    assert steps(select.choose([measured_copy], by(tie={**tie, "confidence": 0.01}))) == [
        FINAL,
        MIDDLE,
        EARLY,
    ]
    # Who was preferred is looked at like any other: its bytes, then what it measures.
    assert found.measured.metrics["sparsity"] == pytest.approx(at(measured_copy, MIDDLE).manifest.sparsity)
    break_all(measured_copy, MIDDLE)
    damaged = select.choose([measured_copy], by(tie=tie))
    assert "digest" in reasons(damaged, MIDDLE)[0]
    assert MIDDLE not in steps(damaged)
    # A best that is damaged says nothing of who ties with it.
    break_all(measured_copy, FINAL)
    assert steps(select.choose([measured_copy], by(tie=tie))) == [EARLY]


def test_margins_to_the_champion_are_to_its_manifest(measured_copy):
    final, middle = (at(measured_copy, step).facts["accuracy"] for step in (FINAL, MIDDLE))
    release(measured_copy, "1.0.0", {"accuracy": final + 0.01})
    rule = {"metric": "accuracy", "vs": "champion", "min_delta": -0.02}
    found = select.choose([measured_copy], by(require=[rule]))
    assert (found.champion, found.notes) == ("1.0.0", ())
    assert steps(found) == [FINAL]
    wanted = f"at least the champion ({final + 0.01:.6g}) - 0.02"
    assert f"accuracy is {middle:.6g}: it must be {wanted}" in reasons(found, MIDDLE)
    size = {"metric": "bytes", "vs": "champion", "max_ratio": 1.0}
    assert not steps(select.choose([measured_copy], by(require=[size])))


def test_the_champion_may_lie_elsewhere_and_only_one_counts(measured_copy, measured_run, tmp_path):
    other = shutil.copytree(measured_copy, tmp_path / "other", symlinks=True)
    release(other, "2.0.0", {"accuracy": 0.99})
    strict = by(require=[{"metric": "accuracy", "vs": "champion", "min_delta": 0}])
    assert len(steps(select.choose([measured_copy], strict))) == 3
    assert not steps(select.choose([measured_copy], strict, champion_of=other))
    release(measured_copy, "1.0.0", {"accuracy": 0.1})
    with pytest.raises(CheckpointError, match="have a champion each: name one of them with --champion-of"):
        select.choose([measured_copy, other], strict)
    assert steps(select.choose([measured_copy, other], strict, champion_of=measured_copy))
    for mark in (measured_copy / "checkpoints/production").glob("*v1.0.0*"):
        mark.unlink()
    with pytest.raises(CheckpointError, match=r"champion is 1\.0\.0, which is not under"):
        select.choose([measured_copy], strict)


def test_speed_and_size_are_measured_of_those_that_pass_the_rest(measured_run):
    def up_to(size):
        wanted = [
            {"metric": "epoch", "min": 4},
            {"metric": "latency_ms", "max": 10_000},
            {"metric": "weights_bytes", "max": size},
        ]
        return select.choose([measured_run], by(require=wanted))

    facts = {c.manifest.global_step: c.facts for c in up_to(10**6).candidates}
    assert not {"latency_ms", "weights_bytes"} & facts[EARLY].keys()
    assert facts[FINAL]["latency_ms"] > 0
    # Sparser weights fill less, far less than the file with its optimizer.
    assert facts[FINAL]["weights_bytes"] < facts[MIDDLE]["weights_bytes"] < facts[MIDDLE]["bytes"] / 2
    found = up_to(int(facts[FINAL]["weights_bytes"]))
    assert steps(found) == [FINAL]
    assert reasons(found, MIDDLE)[0].startswith("weights_bytes is ")
    slow = select.choose([measured_run], by(require=[{"metric": "latency_ms", "max": 0}]), dry_run=True)
    assert not steps(slow)


def test_speed_and_size_against_a_champion_are_measured_of_both(measured_copy):
    released(measured_copy, "1.0.0", MIDDLE)
    smaller = {"metric": "weights_bytes", "vs": "champion", "max_delta": -1}
    found = select.choose([measured_copy], by(require=[smaller]))
    assert (found.champion, steps(found), found.notes) == ("1.0.0", [FINAL], ())
    quick = {"metric": "latency_ms", "vs": "champion", "max_ratio": 1000}
    found = select.choose([measured_copy], by(require=[quick]))
    assert len(steps(found)) == 3
    assert found.notes == ("latency_ms: the median of 3 passes over 1 image(s) on cpu",)
    flip_a_byte(measured_copy / "checkpoints" / "production" / "lenet5_v1.0.0.pt")
    with pytest.raises(CheckpointError, match="its bytes changed"):
        select.choose([measured_copy], by(require=[smaller]))


def test_a_champion_on_other_images_is_compared_with_a_word_of_it(measured_copy, whole_run, tmp_path):
    other = shutil.copytree(whole_run, tmp_path / "other", symlinks=True)
    released(other, "1.0.0", 24)
    near = by(require=[{"metric": "accuracy", "vs": "champion", "min_delta": -1}])
    found = select.choose([measured_copy], near, champion_of=other)
    assert found.notes == (
        "the checkpoints were validated on different images: compare their metrics with care",
    )
    released(measured_copy, "1.0.0", FINAL)
    assert not select.choose([measured_copy], near).notes


def test_several_runs_are_one_choice_in_any_order(measured_copy, measured_run, whole_run):
    claim(measured_copy, EARLY, metrics={"accuracy": 0.9})
    one, other = (
        select.choose(runs, by(), dry_run=True)
        for runs in ([measured_run, measured_copy], [measured_copy, measured_run, measured_run])
    )
    assert one.winner[0] == other.winner[0] == measured_copy / "checkpoints"
    assert [c.path for c in one.candidates] == [c.path for c in other.candidates]
    assert len(one.candidates) == 6
    assert not one.notes
    mixed = select.choose([measured_run, whole_run], by(), dry_run=True)
    assert mixed.notes == (
        "the checkpoints were validated on different images: compare their metrics with care",
    )


def test_each_run_is_measured_on_its_own_data(measured_copy, whole_run):
    root = whole_run / "checkpoints"
    best = max(select.candidates(root), key=lambda c: (c.facts.get("accuracy", -1), c.manifest.sequence))
    claim(measured_copy, FINAL, metrics={"accuracy": 0.99})  # measured first, and refused
    for step in (EARLY, MIDDLE):
        break_all(measured_copy, step)
    found = select.choose([measured_copy, whole_run], by())
    assert found.winner[0] == root
    assert found.measured.metrics["accuracy"] == pytest.approx(best.facts["accuracy"])


def test_what_the_library_saved_cannot_be_measured_again(tmp_path):
    root = tmp_path / "checkpoints"
    manager = CheckpointManager(root)
    manager.save_milestone_checkpoint(torch.nn.Linear(2, 2), 0.5, "accuracy", epoch=1, config={})
    found = select.choose([root], rules.load())
    assert "does not record" in found.candidates[-1].rejected[0]
    assert select.choose([root], rules.load(), dry_run=True).winner[1].metrics == {"accuracy": 0.5}


def test_nothing_to_choose_from_and_a_device_that_is_not_there(tmp_path, measured_run):
    (tmp_path / "checkpoints" / "training").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint to choose from"):
        select.choose([tmp_path], by())
    with pytest.raises(CheckpointError, match="does not exist"):
        select.choose([tmp_path / "nowhere"], by())
    with pytest.raises(CheckpointError, match="no device 'gpu'"):
        select.choose([measured_run], by(), device="gpu")
