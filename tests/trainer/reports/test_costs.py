"""What the network at a peak costs, from the record of its run."""

import json
import shutil

import pytest

from peakpoint.checkpointing.state import objects, serialize
from peakpoint.trainer.reports import study
from tests.conftest import rows


@pytest.fixture(scope="module")
def weights(pruned_run):
    """The state of the network at the peak of the pruned run, as its checkpoint has it."""
    [tested] = [row for row in rows(pruned_run, "test") if row["which"] == "selected"]
    return serialize.load(tested["file"])["model_state_dict"]


def test_the_bytes_are_those_of_the_selected_weights_in_a_packed_file(pruned_run, weights):
    found = study.read_result(pruned_run)
    assert found.bytes == objects.packed_bytes(weights)
    assert found.bytes < 0.6 * sum(value.nbytes for value in weights.values())


def test_the_macs_are_those_of_the_weights_that_are_not_zero(pruned_run, weights):
    dense = json.loads((pruned_run / "run.json").read_text())["macs"]
    kept = sum(
        count * (int(weights[name].count_nonzero()) / weights[name].numel() if name else 1)
        for name, count in dense.items()
    )
    assert study.read_result(pruned_run).macs == pytest.approx(kept)
    assert 0.1 * sum(dense.values()) < kept < 0.7 * sum(dense.values())


@pytest.mark.parametrize("macs", [None, {}, [], {"a": "b"}, {"a": -1}, {"a": 1 << 80}, {"a": True}])
def test_a_record_without_counts_gives_none(pruned_run, tmp_path, macs):
    run = shutil.copytree(pruned_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "macs": macs}))
    found = study.read_result(run)
    assert (found.state, found.macs) == ("finished", None)


def test_the_peak_of_a_run_that_was_not_tested_has_no_size(pruned_run, tmp_path):
    run = shutil.copytree(pruned_run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(line for line in lines if '"test"' not in line))
    assert study.read_result(run).bytes is None
