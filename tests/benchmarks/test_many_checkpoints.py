"""The benchmark of large folders makes real checkpoints, and times every arm."""

from benchmarks import many_checkpoints
from peakpoint.checkpointing.storage import listing, store


def test_every_arm_is_timed_over_real_checkpoints(tmp_path):
    found = many_checkpoints.measure(tmp_path, 20, 1)
    assert set(found) == {"ls", "start", "save", "save, empty", "peer"}
    assert all(seconds > 0 for (seconds,) in found.values())
    root = tmp_path / "full" / "checkpoints"
    there = listing.manifests(root)
    assert [m.global_step for m in there] == list(range(1, 23))  # two saves came to them
    for manifest in there:
        store.verify(root, manifest)
