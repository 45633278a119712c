"""What the record of a run says of its checkpoints: of a run that was killed and resumed, above all."""

import json
import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from peakpoint.base.errors import UserError
from peakpoint.checkpointing.storage import journal, locate
from peakpoint.commands.releases import run_facts
from peakpoint.deployment.inference import evaluate
from tests.conftest import TINY, run_main, status


def rewrite(path, **changes):
    """Change a JSON object in a file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def of(run, **facts):
    """Return the record of the newest checkpoint of a run."""
    root = run / "checkpoints"
    manifest = locate.newest_verified(root).manifest
    config = evaluate.trained_with(root, manifest)["config"]
    return run_facts.read(root, replace(manifest, **facts), config)


@pytest.fixture(scope="session")
def resumed_once(tmp_path_factory):
    """Return a run that was stopped after 8 steps and went on."""
    run = tmp_path_factory.mktemp("resumed") / "run"
    assert run_main(*TINY, "max_steps=8", f"hydra.run.dir={run}").code == 0
    run_main(f"resume={run}", "max_steps=24").succeeded()
    return run


@pytest.fixture
def resumed(resumed_once, tmp_path):
    shutil.copytree(resumed_once, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_the_hours_between_a_kill_and_the_resume_do_not_count(resumed):
    record = json.loads((resumed / "run.json").read_text())
    assert len(record["attempts"]) == 2
    before = of(resumed).hours()
    assert 0 < before < 0.1
    # As if it had lain killed for a day before it was resumed.
    day = timedelta(days=1)

    def later(text):
        return (datetime.fromisoformat(text) + day).isoformat()

    again = record["attempts"][1]["started"]
    record["attempts"][1]["started"] = later(again)
    rewrite(resumed / "run.json", attempts=record["attempts"])
    rewrite(resumed / "status.json", time=later(status(resumed)["time"]))
    path = resumed / "checkpoints" / journal.JOURNAL
    facts = [json.loads(text) for text in path.read_text().splitlines()]
    moved = [f | {"time": later(f["time"])} if f["time"] >= again else f for f in facts]
    path.write_text("".join(json.dumps(f) + "\n" for f in moved))
    assert of(resumed).hours() == pytest.approx(before, abs=1e-5)


def test_a_clock_that_went_backwards_takes_no_time_away(resumed):
    first, second = json.loads((resumed / "run.json").read_text())["attempts"]
    rewrite(resumed / "run.json", attempts=[first | {"started": "2099-01-01T00:00:00+00:00"}, second])
    assert of(resumed).hours() >= 0


def test_the_overrides_of_a_resumed_run_are_recorded(resumed):
    found = of(resumed).provenance("because")
    assert found["command"].startswith("python train.py model=lenet5 ")
    assert found["command"].endswith("max_steps=24")
    assert str(resumed.parent) not in found["command"]
    assert of(resumed).training()["attempts"] == 2


def test_the_test_set_is_of_the_same_weights_or_not_reported(resumed):
    tested = of(resumed).tested()
    assert tested.metrics.keys() == {"loss", "accuracy", "top5_accuracy", "f1_score"}
    assert tested.samples == json.loads((resumed / "run.json").read_text())["config"]["data"]["test_size"]
    assert of(resumed, global_step=23).tested() is None


@pytest.mark.parametrize("attempts", [None, [], [{}], [{"started": "x"}]])
def test_a_record_without_times_has_no_hours(attempts, resumed):
    rewrite(resumed / "run.json", attempts=attempts)
    assert of(resumed).hours() is None


def test_a_run_without_metrics_has_no_peaks_and_broken_ones_are_reported(resumed):
    rows = (resumed / "metrics.jsonl").read_text()
    (resumed / "metrics.jsonl").write_text('{"kind": "eval"}\n' + rows)
    with pytest.raises(UserError, match="line 1 is not a row of metrics"):
        of(resumed)
    kept = [row for row in rows.splitlines(keepends=True) if '"kind": "eval"' not in row]
    (resumed / "metrics.jsonl").write_text("".join(kept))
    assert of(resumed).peaks() == []  # it was killed before its first evaluation
    (resumed / "metrics.jsonl").unlink()
    assert of(resumed).peaks() == []
    assert of(resumed).tested() is None
