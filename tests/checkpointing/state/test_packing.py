"""The sparse form: exact to the last bit, and as small as its parts allow."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import packing, serialize
from peakpoint.models import create
from peakpoint.optimizers.pruning.pruner import Pruner
from tests.optimizers.optimizer_cases import built, settings
from tests.states import differences, load_newest, newest

LIMIT = 2**30
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8]


def size(state, compress):
    file = io.BytesIO()
    serialize.dump(state, file, compress=compress)
    return file.tell()


@given(
    st.sampled_from(DTYPES),
    st.floats(0, 1),
    st.sampled_from([(700, 3), (4, 5, 11, 13), (70_000,), (1,), (0, 3), ()]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_what_is_packed_comes_back_bit_for_bit(dtype, density, shape, channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(shape, generator=generator).mul(50)
    dense = torch.where(torch.rand(shape, generator=generator) < density, dense, 0.0).to(dtype)
    if channels_last and dense.dim() == 4:
        dense = dense.to(memory_format=torch.channels_last)
    state = {"w": dense, "twin": dense, "other": [dense * 2, {"x": (dense + 0, 3)}]}
    packed = packing.pack(state)
    unpacked = packing.unpack(packed, LIMIT)
    assert differences(state, unpacked) == []
    assert unpacked["w"] is unpacked["twin"]
    assert size(state, True) <= size(state, False) + 2048


def test_negative_zero_and_nan_payloads_are_kept():
    values = torch.zeros(5000)
    values.view(torch.int32)[:4] = torch.tensor([-(2**31), 0x7FC01234, 0x7F800001, 1], dtype=torch.int32)
    packed = packing.pack({"w": values})
    assert packed["w"][packing.MARK]
    assert torch.equal(packing.unpack(packed, LIMIT)["w"].view(torch.int32), values.view(torch.int32))


@pytest.mark.parametrize(("density", "form"), [(0.9, "bitmask"), (0.5, "bitmask"), (0.005, "index")])
def test_each_tensor_takes_its_smallest_form(density, form):
    weights = torch.rand(100_000) * (torch.rand(100_000) < density)
    assert packing.pack({"w": weights})["w"]["form"] == form


BOUNDARIES = [1, 255, 256, 257, 65_535, 65_536, 65_537]


@pytest.mark.parametrize("count", BOUNDARIES)
@pytest.mark.parametrize("kept", ["none", "first", "last", "few", "all"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_saved_at_the_boundary_of_an_index_can_be_read(count, kept, dtype):
    where = {"none": [], "first": [0], "last": [count - 1], "all": slice(None)}
    where["few"] = list(range(0, count, 1000))
    weights = torch.zeros(count, dtype=dtype)
    weights[where[kept]] = 1.5
    state = {"w": weights, "square": weights.view(-1, 1)}
    file = io.BytesIO()
    serialize.dump(state, file, compress=True)
    file.seek(0)
    unpacked = packing.unpack(torch.load(file, weights_only=True), LIMIT)
    assert differences(state, unpacked) == []


@pytest.mark.parametrize(("count", "bytes_each"), [(65_535, 2), (65_536, 2), (65_537, 4)])
def test_the_width_of_an_index_is_that_of_files_already_written(count, bytes_each):
    weights = torch.zeros(count)
    weights[[0, count - 1]] = 1.0
    form = packing.pack({"w": weights})["w"]
    assert (form["form"], form["index"].numel()) == ("index", 2 * bytes_each)


def test_an_empty_tensor_comes_back():
    state = {"none": torch.empty(0), "rows": torch.empty(0, 3), "number": torch.tensor(2.0)}
    assert differences(state, packing.unpack(packing.pack(state), LIMIT)) == []


def test_a_dense_tensor_and_a_small_one_stay_as_they_are():
    state = {"dense": torch.rand(10_000) + 1, "small": torch.zeros(100)}
    assert all(packed is state[name] for name, packed in packing.pack(state).items())


def pruned_state(target):
    torch.manual_seed(0)
    options = {"stem": "auto", "dropout": 0.0}
    model = create("resnet50", image_shape=(3, 32, 32), num_classes=100, options=options)
    model.to(memory_format=torch.channels_last)
    optimizer = built("adamw", model)
    Pruner(optimizer, settings(criterion="bitter7", target=target, start_step=0, end_step=1))
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    return {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}


@pytest.mark.slow
def test_a_pruned_training_state_is_small_and_its_masks_are_shared():
    """At 90 %: weights at most 13.2 % of dense, the whole checkpoint with both moments at most 14 %."""
    state = pruned_state(0.9)
    weights = state["model_state_dict"]
    assert size(weights, True) <= 0.132 * size(weights, False)
    assert size(state, True) <= 0.14 * size(state, False)
    packed = packing.pack(state)
    # The pruner's own mask serves the weight and both of its moments.
    masks = {mask.data_ptr() for mask in packed["optimizer_state_dict"]["pruning"]["masks"]}
    weight = packed["model_state_dict"]["layer1.0.conv2.weight"]
    assert weight["mask"].data_ptr() in masks
    moments = packed["optimizer_state_dict"]["state"].values()
    shared = [
        m["exp_avg"]["mask"].data_ptr() == m["exp_avg_sq"]["mask"].data_ptr() in masks
        for m in moments
        if isinstance(m["exp_avg"], dict) and "mask" in m["exp_avg"]
    ]
    assert shared
    assert all(shared)


def test_a_packed_file_opens_with_weights_only_and_loads_as_the_ordinary_one(tmp_path):
    state = pruned_state(0.7)
    path = tmp_path / "packed.pt"
    with path.open("wb") as file:
        serialize.dump(state, file, compress=True)
    assert isinstance(torch.load(path, weights_only=True), dict)
    assert differences(state, serialize.load(path)) == []


@pytest.mark.parametrize("damage", [{"form": None}, {"dtype": "nothing"}, {"shape": [9]}, {"values": 3}])
def test_a_damaged_form_is_one_clear_error(damage):
    packed = packing.pack({"w": torch.eye(200)})
    packed["w"].update(damage)
    if damage == {"form": None}:
        del packed["w"]["form"]
    with pytest.raises(CheckpointError, match="sparse tensor cannot be unpacked"):
        packing.unpack(packed, LIMIT)


def test_a_form_that_claims_more_than_the_bound_is_refused_before_it_is_filled(tmp_path):
    packed = packing.pack({"w": torch.zeros(100_000)})
    packed["w"]["shape"] = [10**13]
    with pytest.raises(CheckpointError, match="refused"):
        packing.unpack(packed, LIMIT)
    torch.save(packed, tmp_path / "bomb.pt")
    with pytest.raises(CheckpointError, match="refused"):
        serialize.load(tmp_path / "bomb.pt")


def test_the_reserved_key_is_refused():
    with pytest.raises(CheckpointError, match="the name is taken"):
        packing.pack({"mine": {packing.MARK: torch.zeros(3)}})


def test_a_compressed_run_resumes_bit_for_bit(train, tmp_path, whole_run):
    from tests.conftest import TINY

    arguments = [*TINY, "checkpoint.compress=true", "pruning.target=0.9", "checkpoint.interval_steps=5"]
    assert train(*arguments, "hydra.run.dir=whole").code == 0
    assert train(*arguments, "max_steps=null", "hydra.run.dir=part").code == 0
    middle = tmp_path / "part" / "checkpoints" / "training" / "checkpoint_epoch_0002_step_00000015.pt"
    train(f"resume={middle}", "hydra.run.dir=fork").succeeded()
    assert differences(load_newest(tmp_path / "whole"), load_newest(tmp_path / "fork")) == []
    assert newest(tmp_path / "whole").bytes < newest(whole_run).bytes
