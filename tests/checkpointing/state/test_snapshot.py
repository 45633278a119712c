"""A snapshot is the state of its moment, wherever that lives, and its memory serves the next one in time."""

import weakref

import pytest
import torch
from torch import nn

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.events import Saved
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.state.serialize import SnapshotBuffers
from tests.checkpointing.checkpoint_cases import files_no_larger_than
from tests.checkpointing.policies import policy_cases as case
from tests.skips import HAS_CUDA, NO_CUDA

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_CUDA)
DEVICES = ["cpu", pytest.param("cuda", marks=cuda)]


def every_kind(device):
    """Tensors of all sorts: dense, views, none, tied, of several types."""
    torch.manual_seed(0)
    whole = torch.randn(2, 3, 4, 5, device=device)
    tied = torch.randn(6, 7, device=device)
    return {
        "dense": whole,
        "channels_last": torch.randn(2, 3, 4, 5, device=device).to(memory_format=torch.channels_last),
        "transposed": tied.t(),
        "columns": tied[:, 1:3],
        "columns of the transposed": tied.t()[:, 1:3],
        "every other": torch.arange(10, device=device)[::2],
        "expanded": torch.arange(3.0, device=device).expand(4, 3),
        "conjugate": torch.randn(3, dtype=torch.complex64, device=device).conj(),
        "negative": torch.randn(3, dtype=torch.complex64, device=device).conj().imag,
        "scalar": torch.tensor(7, device=device),
        "none": [torch.empty(0, device=device), torch.empty(0, 3, device=device)],
        "bits": (torch.tensor([True, False], device=device), torch.ones(3, device=device).bfloat16()),
        "tied": [tied, tied, nn.Parameter(tied)],
        "on the CPU": torch.get_rng_state(),
        "plain": {"epoch": 3, "name": "ü", "nothing": None},
    }


def leaves(state):
    """The tensors of a nested state, in order."""
    if isinstance(state, torch.Tensor):
        return [state]
    if isinstance(state, dict):
        state = state.values()
    return [leaf for child in state for leaf in leaves(child)] if not isinstance(state, PLAIN) else []


PLAIN = (str, int, float, type(None))


def places(snapshot):
    """Where the tensors of a snapshot lie."""
    return {tensor.data_ptr() for tensor in leaves(snapshot.state) if tensor.numel()}


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_what_a_plain_snapshot_is_each_time(device):
    buffers, state = SnapshotBuffers(), every_kind(device)
    expected = serialize.digest(serialize.snapshot(state))
    for _ in range(3):
        taken = buffers.snapshot(state)
        assert serialize.digest(taken.state) == expected  # values, types and strides, bit for bit
        assert {tensor.device.type for tensor in leaves(taken.state)} == {"cpu"}
        assert len({id(tensor) for tensor in taken.state["tied"]}) == 1
        assert taken.state["none"][0] is not taken.state["none"][1]
        taken.release()
    for tensor in leaves(state):
        if tensor.is_floating_point() and tensor.numel() and not tensor.requires_grad:
            tensor.zero_()
    assert (
        serialize.digest(buffers.snapshot(state).state)
        == serialize.digest(serialize.snapshot(state))
        != expected
    )


@pytest.mark.parametrize("device", DEVICES)
def test_the_memory_of_one_that_is_released_serves_the_next(device):
    buffers, state = SnapshotBuffers(), every_kind(device)
    first = buffers.snapshot(state)
    before = places(first)
    first.release()
    assert places(buffers.snapshot(state)) == before


@pytest.mark.parametrize("device", DEVICES)
def test_one_that_is_still_needed_keeps_its_memory(device):
    buffers, weight = SnapshotBuffers(), torch.zeros(1000, device=device)
    waiting = buffers.snapshot({"w": weight})
    weight += 1
    second = buffers.snapshot({"w": weight})
    weight += 1
    second.release()
    third = buffers.snapshot({"w": weight})
    assert [s.state["w"][0].item() for s in (waiting, third)] == [0, 2]
    waiting.release()  # too late: its memory is nobody's, and goes
    before = places(third)
    third.release()
    assert places(buffers.snapshot({"w": weight})) == before


def test_after_its_release_a_snapshot_is_not_read():
    taken = SnapshotBuffers().snapshot({"w": torch.ones(3)})
    taken.release()
    with pytest.raises(RuntimeError, match="read after its release"):
        _ = taken.state


def test_memory_that_the_next_has_no_use_for_is_let_go():
    buffers = SnapshotBuffers()
    taken = buffers.snapshot({"a": torch.zeros(10), "b": torch.zeros(20)})
    used, unused = (weakref.ref(taken.state[name]) for name in "ab")
    taken.release()
    assert used() is not None
    assert unused() is not None
    taken = buffers.snapshot({"a": torch.zeros(10), "b": torch.zeros(20, dtype=torch.int32)})
    assert used() is taken.state["a"]
    assert unused() is None


def test_a_state_that_is_refused_spoils_nothing():
    buffers, weight = SnapshotBuffers(), torch.zeros(10)
    waiting = buffers.snapshot({"w": weight})
    with pytest.raises(CheckpointError, match=r"state\['x'\] is of type"):
        buffers.snapshot({"w": weight + 1, "x": object()})
    assert waiting.state["w"].sum() == 0
    assert buffers.snapshot({"w": weight + 1}).state["w"].sum() == 10


def test_in_inference_mode_and_out_of_it():
    buffers = SnapshotBuffers()
    for value in range(4):
        with torch.inference_mode(value % 2 == 0):
            taken = buffers.snapshot({"w": torch.full((3,), value)})
            assert taken.state["w"].tolist() == [value] * 3
            taken.release()


@pytest.mark.filterwarnings("ignore:.*quantized")
def test_a_quantized_tensor():
    whole = torch._make_per_tensor_quantized_tensor(torch.tensor([1, 2, 3], dtype=torch.uint8), 0.5, 1)
    back = SnapshotBuffers().snapshot({"w": whole}).state["w"]
    assert back.dequantize().tolist() == [0.0, 0.5, 1.0]
    assert back.data_ptr() != whole.data_ptr()


@pytest.mark.skipif(torch.cuda.is_available(), reason=HAS_CUDA)
def test_where_no_memory_can_be_pinned_other_serves_and_it_is_reported_once(warnings):
    buffers = SnapshotBuffers()
    for form in [(torch.float32, torch.Size([2, 3]), (1, 2), True)] * 2:
        buffer = buffers._new(form)
        assert (buffer.dtype, buffer.shape, buffer.stride()) == form[:3]
    (reported,) = warnings()
    assert reported.startswith("No pinned memory for snapshots, so that they take longer: ")


@pytest.fixture
def written(monkeypatch):
    """Where the weight lies each time that a state is written."""
    found, dump = [], serialize.dump

    def noting(state, *args, **kwargs):
        found.append(state["model_state_dict"]["w"].data_ptr())
        return dump(state, *args, **kwargs)

    monkeypatch.setattr(serialize, "dump", noting)
    return found


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_uses_the_same_memory_for_save_after_save(world, written, background, device):
    run = world(interval=case.interval(epochs=1, keep_last=9))
    run.attempt(background=background)
    run.weight = torch.zeros(100_000, device=device)
    for _ in range(5):
        run.epoch(0.5)
    assert [run.weight_in(m.file) for m in run.kept] == [1, 2, 3, 4, 5]
    assert len(written) == 5
    assert len(set(written)) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_save_that_waits_for_its_retry_keeps_its_memory(world, written, device):
    run = world(interval=case.interval(epochs=1, keep_last=9), best=case.best())
    run.weight = torch.zeros(64, device=device)
    with files_no_larger_than(1000):
        run.epoch(0.9)  # a peak, which waits while others come and fail
        run.epoch(0.6)
        run.epoch(0.6)
        run.manager.drain()
    run.epoch(0.6)
    of_the_peak, *others = written
    assert of_the_peak not in set(others[1::2])
    assert set(others[::2]) == {of_the_peak}  # each time before the next is made
    assert {m.epoch: run.weight_in(m.file) for m in run.kept} == {1: 1, 4: 4}


@cuda
def test_on_cuda_the_memory_is_pinned_and_training_goes_on_before_it_is_filled():
    buffers, weight = SnapshotBuffers(), torch.zeros(1 << 20, device="cuda")
    buffers.snapshot({"w": weight}).release()  # memory is made
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)  # half a second of work
        weight.fill_(1)
        taken = buffers.snapshot({"w": weight})
        weight.fill_(2)
        torch.cuda.set_sync_debug_mode("default")
        assert not torch.cuda.current_stream().query()  # all of this came back before any of it was done
        assert taken.wait() < 0.3  # seconds of the copy, without the work before it
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert taken.state["w"].is_pinned()
    assert taken.state["w"].eq(1).all()
    assert weight.eq(2).all()


@cuda
@pytest.mark.parametrize("own_stream", [False, True])
def test_on_cuda_what_changes_right_after_does_not_show(own_stream):
    """Neither an update in place nor memory that was freed and given to others."""
    buffers = SnapshotBuffers()
    with torch.cuda.stream(torch.cuda.Stream() if own_stream else torch.cuda.current_stream()):
        weight = torch.zeros(1 << 26, device="cuda")  # 268 MB: some 10 ms to copy, the update takes 0.2
        columns = torch.zeros(1 << 13, 1 << 10, device="cuda")
        for turn in range(4):
            temporary = torch.full((1 << 26,), turn, device="cuda", dtype=torch.float32)
            taken = buffers.snapshot({"w": weight, "c": columns[:, 1:], "t": temporary})
            del temporary
            reused = torch.full((1 << 26,), -1.0, device="cuda")
            weight += 1
            columns += 1
            for name in "wct":
                assert taken.state[name].eq(turn).all(), (name, turn)
            del reused
            taken.release()


@cuda
def test_on_cuda_the_stall_of_a_save_is_what_the_stream_waited(world):
    run = world(interval=case.interval(epochs=1))
    run.attempt(background=True)
    run.weight = torch.zeros(1 << 26, device="cuda")
    run.epoch(0.5)
    run.epoch(0.5)
    *_, second = run.stated(Saved)
    assert 268e6 / 200e9 < second.stall_s < second.total_s  # faster than any bus: then it was not measured
