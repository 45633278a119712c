"""The benchmark measures what it says: every arm saves, and the peak of memory is that of the save."""

from pathlib import Path

import pytest
import torch

from benchmarks._checkpoint_arms import (
    ARMS,
    COPY,
    DIGEST,
    DURABLE,
    OURS,
    PACK,
    PACKED,
    PEERS,
    RAW,
    SHA,
    UNPACK,
    VERIFY,
    small,
)
from benchmarks.checkpoint_cost import goals, measure, table
from tests.conftest import process

SAVES_NOTHING = {"nothing", COPY, DIGEST, PACK, SHA, UNPACK, VERIFY}
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every arm that can run here, on next to nothing."""
    names = [name for name in ARMS if name != "pinned copy"]
    return measure(small(torch.device("cpu")), names, 2, tmp_path_factory.mktemp("cost"))


def test_every_arm_saves_and_is_timed(results):
    assert {RAW, OURS, PACKED, *DURABLE} <= results.keys()
    assert set(DURABLE) < PEERS.keys()
    for name, result in results.items():
        assert (result["bytes"] > 0) == (name not in SAVES_NOTHING), name
        assert len(result["total"]) == 2
        for thread, stall, total in zip(result["thread"], result["stall"], result["total"], strict=True):
            assert 0 <= thread <= stall <= total
    rows = table(results)
    assert list(rows) == list(results)
    assert rows[RAW][1] == "1.00 (1.00 to 1.00)"


def test_training_waits_for_a_part_of_ours_and_for_all_of_those_that_write_at_once(results):
    assert all(s < t for s, t in zip(results[OURS]["stall"], results[OURS]["total"], strict=True))
    assert results["torch.save"]["stall"] == results["torch.save"]["total"]


def test_each_goal_is_printed_with_what_was_found():
    once = {"thread": [1.0, 1.0], "stall": [1.0, 1.0], "total": [2.0, 2.0], "bytes": 100}
    results = {name: dict(once) for name in (RAW, COPY, OURS, PACKED, *PEERS)}
    results[OURS] |= {"total": [2.0, 2.2], "stall": [1.2, 1.3]}
    results[PACKED] |= {"bytes": 13}
    results["safetensors"] |= {"total": [0.5, 0.5]}
    found = goals(results)
    assert "save, to raw write + fsync: 1.05 (1.00 to 1.10), at most 1.1: met" in found
    assert "stall, to a plain host copy: 1.25 (1.20 to 1.30), at most 1.1: not met" in found
    assert (
        "save, to the quickest peer of all, safetensors: 4.20 (4.00 to 4.40), at most 1.0: not met" in found
    )
    assert any(line.startswith("compressed bytes, to dense: 13.0%") for line in found)


MEMORY = """
import sys
from pathlib import Path
import torch
from benchmarks._checkpoint_arms import Subject
from benchmarks.checkpoint_cost import memory
model = torch.nn.Linear(2000, 2000)
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 2000)).sum().backward()
optimizer.step()
print(memory(sys.argv[1], Subject(model, optimizer, torch.device("cpu")), Path(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "copies"), [("nothing", 0), (COPY, 1), (OURS, 1), ("torch.save", 0)])
def test_the_peak_of_memory_is_that_of_the_copies_of_the_state(tmp_path, arm, copies):
    """A state of 48 MB: weights and two moments."""
    done = process("-c", MEMORY, arm, tmp_path, MALLOC_MMAP_THRESHOLD_="65536")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == pytest.approx(copies * 48e6, abs=8e6)
