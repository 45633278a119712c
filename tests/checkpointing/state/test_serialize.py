"""A snapshot is a copy of plain things, and what is written opens anywhere without running code."""

import argparse
import collections
import dataclasses
import enum
import errno
import io
import pathlib
import types

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import nn

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.state import serialize
from tests.conftest import one_line
from tests.states import same


def reopened(state):
    """Written, and read with weights_only=True."""
    file = io.BytesIO()
    serialize.dump(serialize.snapshot(state), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def written(state):
    """How many bytes a state takes on disk."""
    file = io.BytesIO()
    serialize.dump(serialize.snapshot(state), file)
    return file.tell()


def test_plain_things_come_back_as_they_were():
    state = {
        "text": "ü" * 300,
        "numbers": [0, -1, 2**63, 2**200, 1.5, float("inf"), True, None, b"\x00\xff"],
        "tuple": (3, (1, 2, 3), None),  # as in random.getstate()
        "empty": [{}, [], ()],
        7: {0: "int keys", 1.5: "float", True: "bool", ("a", 1): "tuple"},
    }
    back = reopened(state)
    assert back == state
    assert type(back["tuple"]) is tuple
    assert [type(v) for v in back["numbers"]] == [type(v) for v in state["numbers"]]


def test_mappings_of_the_standard_library_become_dicts():
    state = [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter("aab"),
        types.MappingProxyType({"a": 1}),
    ]
    back = reopened(state)
    assert back == [{"b": 1, "a": 2}, {"a": [1]}, {"a": 2, "b": 1}, {"a": 1}]
    assert {type(v) for v in back} == {dict}
    assert list(back[0]) == ["b", "a"]


class Colour(enum.IntEnum):
    red = 1


class Word(str):
    __slots__ = ()


class Own(torch.Tensor):
    pass


class Mine(dict):
    pass


@dataclasses.dataclass
class Settings:
    lr: float = 0.1


Point = collections.namedtuple("Point", "x y")

REFUSED = {
    "numpy scalar": np.float64(0.5),
    "numpy integer": np.int64(3),
    "numpy array": np.zeros(3),
    "Path": pathlib.Path("x"),
    "DictConfig": DictConfig({"a": 1}),
    "dataclass": Settings(),
    "Namespace": types.SimpleNamespace(a=1),
    "subclass of str": Word("x"),
    "subclass of int": Colour.red,
    "subclass of tuple": Point(1, 2),
    "subclass of dict": Mine(a=1),
    "torch.Size": torch.Size([1]),
    "torch.dtype": torch.float32,
    "torch.device": torch.device("cpu"),
    "set": {1},
    "complex": 1j,
    "function": print,
    "module": nn.Linear(1, 1),
    "subclass of Tensor": torch.ones(2).as_subclass(Own),
    "sparse tensor": torch.eye(3).to_sparse(),
    "meta tensor": torch.empty(3, device="meta"),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_by_the_path_of_its_key(value):
    with one_line(CheckpointError) as refusal:
        serialize.snapshot({"a": {"good": 1, "list": [0, {3: value}]}})
    assert str(refusal.value).startswith("state['a']['list'][1][3] is ")


@pytest.mark.parametrize("key", [None, np.int64(1), Word("x"), (np.int64(1),), ("a", (None,)), b"x"])
def test_a_key_that_would_need_a_class_is_refused(key):
    with pytest.raises(CheckpointError, match=r"state\['a'\] has a key of type"):
        serialize.snapshot({"a": {key: 1}})


def test_a_snapshot_does_not_change_with_the_living_state():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "list": [1, [2]]}
    before = reopened(state)
    taken = serialize.snapshot(state)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state["list"][1].append(3)
    for name, tensor in before["model"].items():
        assert torch.equal(taken["model"][name], tensor)
    for name, tensor in before["optimizer"]["state"][0].items():
        assert torch.equal(taken["optimizer"]["state"][0][name], tensor)
    assert taken["list"] == [1, [2]]
    assert not torch.equal(taken["model"]["0.weight"], model[0].weight)


def test_a_view_does_not_bring_its_whole_storage():
    whole = torch.zeros(1000, 1000)
    assert written({"row": whole[3], "corner": whole[:2, :2]}) < 10_000
    assert torch.equal(reopened({"corner": whole[:2, :2]})["corner"], whole[:2, :2])


def test_what_is_shared_stays_shared_and_is_written_once():
    tied = nn.Parameter(torch.randn(100, 100))
    state = {"encoder": tied, "decoder": tied, "view": tied[:50]}
    taken = serialize.snapshot(state)
    assert taken["encoder"].data_ptr() == taken["decoder"].data_ptr()
    assert taken["view"].data_ptr() != taken["encoder"].data_ptr()
    back = reopened({"encoder": tied, "decoder": tied})
    back["encoder"][0, 0] = 7
    assert back["decoder"][0, 0] == 7
    assert written({"encoder": tied, "decoder": tied}) < 1.2 * written({"encoder": tied})


@pytest.mark.parametrize("view", [lambda t: t.view(torch.int32), lambda t: t.t()], ids=["type", "order"])
def test_the_same_memory_read_in_two_ways_is_not_confused(view):
    square = torch.arange(9.0).view(3, 3)
    back = reopened({"w": square, "view": view(square)})
    assert same(back["w"], square)
    assert same(back["view"], view(square))


def test_empty_tensors_are_not_taken_for_one_another():
    taken = serialize.snapshot({"a": torch.empty(0), "b": torch.empty(0)})
    assert taken["a"] is not taken["b"]


def test_strides_are_kept():
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    back = reopened({"w": tensor, "t": tensor[0, 0].t()})
    assert back["w"].stride() == tensor.stride()
    assert back["w"].is_contiguous(memory_format=torch.channels_last)
    assert back["t"].stride() == (1, 5)


NUMBERS = "float64 float16 bfloat16 int64 int8 uint8 bool complex64 float8_e4m3fn"


@pytest.mark.parametrize("name", NUMBERS.split())
def test_every_type_of_number(name):
    dtype = getattr(torch, name)
    tensor = torch.tensor([0, 1, 1, 0]).to(dtype)
    back = reopened({"t": tensor, "scalar": tensor[1]})
    assert back["t"].dtype is dtype
    assert back["t"].tolist() == tensor.tolist()
    assert back["scalar"].shape == ()


def test_parameters_become_plain_tensors_without_gradients():
    back = serialize.snapshot({"w": nn.Parameter(torch.ones(2))})["w"]
    assert type(back) is torch.Tensor
    assert not back.requires_grad


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"a": torch.ones(3)}, None),
        ({"a": torch.ones(3), "b": torch.tensor([1.0, float("nan")])}, "b"),
        ({"a": torch.tensor([float("inf"), float("-inf")])}, "a"),
        ({"a": torch.full((70_000,), 1.0, dtype=torch.float16)}, None),  # the sum overflows, no weight does
        ({"a": torch.full((10,), 3e38)}, None),
        ({"a": torch.tensor([2**62, 2**62])}, None),
        ({"a": torch.tensor([complex(1, float("nan"))])}, "a"),
        ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, None),
        ({"a": torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)}, "a"),
        ({"a": torch.empty(0)}, None),
        ({"_extra_state": {"version": 2}, "b": torch.tensor(float("nan"))}, "b"),
    ],
)
def test_the_first_weight_that_is_not_finite(state, name):
    assert serialize.nonfinite(state) == name


class Refusing(io.BytesIO):
    """A file whose write number `at` fails, once."""

    def __init__(self, at):
        super().__init__()
        self.count, self.at = 0, at

    def write(self, data):
        self.count += 1
        if self.count == self.at:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("at", range(1, 30))
def test_a_write_that_fails_is_reported_as_what_it_is(at):
    with pytest.raises(OSError, match="No space left"):
        serialize.dump({"a": torch.ones(1000), "b": torch.ones(5)}, Refusing(at))


@pytest.mark.parametrize("before", [True, False])
def test_the_crc_option_of_torch_is_put_back(before):
    torch.serialization.set_crc32_options(before)
    try:
        serialize.dump({"a": 1}, io.BytesIO())
        assert torch.serialization.get_crc32_options() is before
        with pytest.raises(OSError, match="No space"):
            serialize.dump({"a": 1}, Refusing(1))
        assert torch.serialization.get_crc32_options() is before
    finally:
        torch.serialization.set_crc32_options(True)


class Evil:
    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path("pwned"),))


def test_what_torch_refuses_is_reported_without_its_advice_to_execute_it(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(CheckpointError) as refusal:
        serialize.load(str(path))
    why = "it is damaged, or holds more than tensors and plain values"
    assert str(refusal.value) == f"{path} cannot be opened as a checkpoint: {why}."


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file"),
        (b"", "is not a checkpoint archive"),
        (b"PK\x03\x04 not one", "is not a checkpoint archive"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_line(tmp_path, content, sentence):
    path = tmp_path / "x.pt"
    if content is not None:
        path.write_bytes(content)
    with one_line(CheckpointError, match=sentence) as refusal:
        serialize.load(path)
    assert str(path) in str(refusal.value)


def test_loading_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        serialize.load(tmp_path / "x.pt")
    assert not (tmp_path / "pwned").exists()
