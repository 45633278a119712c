"""The bytes of a checkpoint are written whole and digested on the way."""

import hashlib
import os

import pytest
import torch
from blake3 import blake3

from peakpoint.base import digests, files
from peakpoint.base.digests import BLAKE3, SHA256
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import CHUNK, Staged
from peakpoint.checkpointing.state import serialize
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.faults.fault_cases import in_child


@pytest.mark.parametrize("algorithm", [BLAKE3, SHA256])
@pytest.mark.parametrize("size", [0, 1, 1000, CHUNK - 1, CHUNK, CHUNK + 1])
def test_pieces_of_every_size_are_written_and_digested(tmp_path, monkeypatch, size, algorithm):
    monkeypatch.setattr(files, "BEHIND", CHUNK)
    with Staged(tmp_path / "x", algorithm=algorithm) as staged:
        expected = b""
        for number in range(6):
            piece = bytes([number]) * (size if number % 3 else 7)
            assert staged.write(memoryview(piece) if number % 2 else piece) == len(piece)
            expected += piece
        staged.sync()
        staged.publish()
    assert (tmp_path / "x").read_bytes() == expected
    assert staged.size == len(expected)
    assert staged.digest == digests.of_bytes(expected, algorithm)


@pytest.mark.parametrize("compress", [False, True])
def test_a_state_is_digested_as_it_is_written(tmp_path, compress):
    weight = torch.randn(1_000_000)
    weight[::2] = 0
    state = {"history": [float(i) for i in range(100_000)], "w": weight, "tied": weight}
    with Staged(tmp_path / "x") as staged:
        serialize.dump(state, staged, compress=compress)
        staged.sync()
        staged.publish()
    assert staged.digest == digests.digest_of(tmp_path / "x", BLAKE3)
    assert torch.equal(serialize.load(tmp_path / "x")["w"], weight)


def test_a_write_that_fails_is_the_error_of_the_system(tmp_path):
    with Staged(tmp_path / "x") as staged, files_no_larger_than(1000), pytest.raises(OSError, match="large"):
        serialize.dump({"w": torch.randn(1_000_000)}, staged)


@pytest.mark.parametrize("algorithm", [BLAKE3, SHA256])
@pytest.mark.parametrize("size", [0, 1, digests.PIECE - 1, digests.PIECE, 2 * digests.PIECE + 1])
def test_a_file_has_the_digest_of_its_bytes_on_any_number_of_threads(tmp_path, algorithm, size):
    path, content = tmp_path / "x", bytes(range(251)) * (size // 251 + 1)
    path.write_bytes(content[:size])
    expected = {BLAKE3: blake3, SHA256: hashlib.sha256}[algorithm](content[:size]).hexdigest()
    for threads in (1, digests.ALL):
        assert digests.digest_of(path, algorithm, threads) == f"{algorithm}:{expected}"
    assert digests.matches(path, f"{algorithm}:{expected}")
    assert not digests.matches(path, f"{algorithm}:{'0' * 64}")


def test_a_forked_child_digests_too(tmp_path):
    (tmp_path / "x").write_bytes(bytes(2 * digests.PIECE))
    expected = digests.digest_of(tmp_path / "x", BLAKE3, 2)

    def work(say):
        say(digests.digest_of(tmp_path / "x", BLAKE3, 2))

    assert in_child(work) == (0, [expected])


def test_a_digest_without_an_algorithm_is_sha256():
    assert digests.parsed("ab" * 32) == f"sha256:{'ab' * 32}"
    assert digests.parsed(f"blake3:{'ab' * 32}") == f"blake3:{'ab' * 32}"


@pytest.mark.parametrize(
    "text", ["", "ab", "md5:" + "ab" * 32, "blake3:" + "../" * 20, "blake3:" + "AB" * 32]
)
def test_what_is_no_digest_is_refused(text):
    with pytest.raises(ValueError, match="is not a digest"):
        digests.parsed(text)


def test_what_is_no_regular_file_has_no_digest(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(CheckpointError, match="not a regular file"):
        digests.digest_of(tmp_path / "x", BLAKE3)
