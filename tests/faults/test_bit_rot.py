"""Any flipped bit and any truncation, of the bytes and of the manifest, is found before use."""

import random

import pytest
import torch

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing, locate, store
from peakpoint.checkpointing.storage.store import Store
from tests.checkpointing.checkpoint_cases import saved

TIMES = 300


@pytest.mark.parametrize("end", [".pt", ".json"])
@pytest.mark.parametrize("how", ["flip", "cut"])
def test_every_one_of_300_is_found(tmp_path, end, how):
    target = Store(tmp_path, "run")
    before = saved(target, "training/a.pt", 1.0)
    last = saved(target, "training/b.pt", 2.0, metrics={"accuracy": 0.5}, sparsity=0.7)
    path = target.path(last)
    originals = {p: p.read_bytes() for p in (path, path.with_suffix(".json"))}
    victim = path.with_suffix(end)
    dice = random.Random(0)
    found = 0
    for _ in range(TIMES):
        for p, data in originals.items():
            p.write_bytes(data)
        data = bytearray(originals[victim])
        if how == "flip":
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        else:
            del data[dice.randrange(len(data)) :]
        victim.write_bytes(data)
        newest = locate.newest_verified(tmp_path)
        assert newest.manifest is not None
        found += newest.manifest.file == before.file and [s[0] for s in newest.skipped] == [last.file]
    assert found == TIMES


def test_torch_alone_finds_none_of_the_flipped_weights(tmp_path):
    """Negative control: why there is a digest."""
    target = Store(tmp_path, "run")
    path = target.path(saved(target))
    whole = path.read_bytes()
    at = whole.index(b"\x00\x00\x80\x3f" * 8)
    dice = random.Random(0)
    for _ in range(20):
        data = bytearray(whole)
        data[at + dice.randrange(32)] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        assert not torch.equal(serialize.load(path)["model_state_dict"]["w"], torch.ones(8))
        with pytest.raises(CheckpointError, match="digest"):
            store.verify(tmp_path, listing.manifests(tmp_path)[0])
