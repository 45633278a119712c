"""The bytes of a checkpoint are written and digested at once, whole, and from memory that is still theirs."""

import hashlib
import io
import os
import threading

import pytest
import torch
from blake3 import blake3

from peakpoint.base import digests, files
from peakpoint.base.digests import BLAKE3, LARGE, SHA256, HashingWriter
from peakpoint.base.errors import CheckpointError
from peakpoint.base.files import Staged
from peakpoint.checkpointing.state import serialize
from tests.checkpointing.checkpoint_cases import files_no_larger_than

BIG = LARGE + 1


@pytest.fixture
def digest(monkeypatch):
    """A digest that takes its time: nothing is digested until `digest.set()`."""
    go = threading.Event()

    class Slow:
        name = "slow"

        def __init__(self, **_):
            self.found = blake3()

        def update(self, data):
            assert go.wait(60)
            self.found.update(data)

        def hexdigest(self):
            return self.found.hexdigest()

    monkeypatch.setattr(digests, "blake3", Slow)
    yield go
    go.set()


class Noting(HashingWriter):
    """Notes the sizes of what is lent."""

    def __init__(self, file):
        super().__init__(file)
        self.lent = []

    def lend(self, data):
        self.lent.append(len(data))
        return super().lend(data)


def waits(go, call):
    """Whether a call comes back only once `go` is set."""
    thread = threading.Thread(target=call)
    thread.start()
    thread.join(0.2)
    waited = thread.is_alive()
    go.set()
    thread.join(60)
    assert not thread.is_alive()
    return waited


@pytest.mark.parametrize("size", [0, 1, 1000, LARGE - 1, LARGE, BIG, files.CHUNK + 1])
def test_pieces_of_every_size_in_every_order(tmp_path, size):
    with Staged(tmp_path / "x") as staged:
        writer, expected = HashingWriter(staged.file), b""
        for number in range(12):
            piece = bytes([number]) * (size if number % 3 else 7)
            assert (writer.lend if number % 4 == 1 else writer.write)(piece) == len(piece)
            expected += piece
        writer.finish()
        staged.sync()
        staged.publish()
    assert (tmp_path / "x").read_bytes() == expected
    assert writer.size == len(expected)
    assert writer.digest == digests.of_bytes(expected, BLAKE3)


@pytest.mark.parametrize("size", [10, BIG])
def test_what_was_written_may_change_at_once(tmp_path, size):
    piece = bytearray(b"a" * size)
    with Staged(tmp_path / "x") as staged:
        writer = HashingWriter(staged.file)
        for byte in b"bcd":
            writer.write(piece)
            piece[:] = bytes([byte]) * size
        writer.finish()
        staged.publish()
    expected = b"".join(bytes([byte]) * size for byte in b"abc")
    assert (tmp_path / "x").read_bytes() == expected
    assert writer.digest == digests.of_bytes(expected, BLAKE3)


def test_a_write_waits_for_its_digest_and_what_is_lent_does_not(digest):
    writer = HashingWriter(io.BytesIO())
    writer.lend(b"a" * BIG)
    assert waits(digest, lambda: writer.write(b"b" * BIG))
    writer.finish()
    assert writer.digest == f"slow:{blake3(b'a' * BIG + b'b' * BIG).hexdigest()}"


def test_settled_is_when_nothing_is_read_any_more(digest):
    writer = HashingWriter(io.BytesIO())
    writer.settle()
    writer.lend(b"a" * BIG)
    assert waits(digest, writer.settle)
    writer.finish()


@pytest.mark.parametrize("compress", [False, True])
def test_a_state_is_lent_and_given_back(digest, compress):
    """Also what only the packed form holds: it is gone when `dump` has returned."""
    weight = torch.randn(1_000_000)
    weight[::2] = 0
    writer = Noting(io.BytesIO())
    assert waits(digest, lambda: serialize.dump({"w": weight, "tied": weight}, writer, compress=compress))
    writer.finish()
    assert writer.lent == [2_000_000 if compress else 4_000_000]


def test_a_state_whose_write_fails_is_given_back(digest, tmp_path):
    failed = []

    def write():
        with Staged(tmp_path / "x") as staged, files_no_larger_than(1000):
            writer = HashingWriter(staged.file)
            try:
                serialize.dump({"w": torch.randn(1_000_000)}, writer)
            except OSError as error:
                failed.append((error, digest.is_set()))
            writer.finish()

    assert waits(digest, write)
    assert failed[0][1]  # not before


def test_what_torch_holds_for_a_moment_is_not_lent(tmp_path):
    """The pickled part, and the memory of nobody."""
    state = {"history": [float(i) for i in range(100_000)], "w": torch.randn(100_000), "small": torch.ones(3)}
    with Staged(tmp_path / "x") as staged:
        writer = Noting(staged.file)
        serialize.dump(state, writer)
        writer.finish()
        staged.publish()
    assert writer.lent == [400_000]
    assert writer.digest == digests.digest_of(tmp_path / "x", BLAKE3)
    assert serialize.load(tmp_path / "x")["history"] == state["history"]


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
