"""Small files of anybody: whatever they are, they are read within bounds or refused in one line."""

import os
import socket

import pytest

from peakpoint.base import bounded
from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import json_text
from tests.conftest import one_line

DEEP = 100_000


def fifo(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def listening(path):
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()  # noqa: PTH109 (the name of a socket may not be long)
        os.chdir(path.parent)
        server.bind(path.name)
        os.chdir(here)


def sparse(path):
    with path.open("wb") as file:
        file.truncate(200 << 30)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (fifo, "not a regular file"),
        (device, "not a regular file"),
        (listening, "not a regular file"),
        (lambda path: path.mkdir(), "not a regular file"),
        (sparse, "has more than"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: None, "No such file"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [bounded.read_bytes, bounded.read_json, bounded.read_strict_yaml, lambda path: list(bounded.lines(path))],
)
def test_what_is_no_small_file_is_one_line(tmp_path, make, words, read):
    path = tmp_path / "x"
    make(path)
    with one_line(CheckpointError, match=words) as refusal:
        read(path)
    assert isinstance(refusal.value, bounded.Absent) == (words == "No such file")


def test_a_file_without_a_size_is_bounded_too():
    with pytest.raises(CheckpointError, match="more than 10 bytes"):
        bounded.read_bytes(bounded.Path("/proc/self/status"), 10)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * DEEP, "nested"),
        ('{"a":' * DEEP, "nested"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested"),
        ('{"a": [' + "9" * 30 + "]}", "64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "does not hold a JSON object"),
        ("\udcff", "not JSON"),
    ],
)
def test_json_that_would_break_its_readers_is_one_line(tmp_path, text, words):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=words) as refusal:
        bounded.read_json(path)
    assert len(str(refusal.value)) < 500


def test_nesting_of_as_many_levels_as_may_be_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a":' * 60 + "1" + "}" * 60)
    assert bounded.read_json(path)["a"]
    path.write_text('{"digest": "' + "1" * 64 + '", "n": 18446744073709551615}')
    assert bounded.read_json(path)["n"] == 2**64 - 1


def test_what_is_written_is_read(tmp_path):
    deep = {}
    for _ in range(62):
        deep = {"a": deep}
    value = {"seed": 2**64 - 1, "deep": deep, "nan": float("nan")}
    path = tmp_path / "x.json"
    path.write_text(json_text(value))
    assert bounded.read_json(path) == {**value, "nan": "nan"}
    loop = {}
    loop["a"] = [loop, loop]
    for wrong in (2**64, [{"b": [-(2**64)]}], {"a": {"b": deep}}, loop, "x" * 2000):
        with pytest.raises(CheckpointError, match=r"^key cannot be saved as JSON: it"):
            json_text({"fine": 1, "key": wrong}, 2000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "uses the alias \\*a"),
        ("[" * DEEP, "nested"),
        ("? " * DEEP, "nested"),
        ("a: " + ":".join(["1"] * 5000), "64 bits"),
        ("a: !!python/object/apply:os.getcwd []", "constructor"),
        ("a: !" + "x" * 10_000, "constructor"),
        ("a: 1.0e+400\nb: " + ":".join(["59"] * 300) + ".5", "too large"),
        ("- a", "holds no keys"),
        ("a: b\n" * 60_000, "more than"),
    ],
)
def test_yaml_that_stands_for_more_than_it_holds_is_one_line(tmp_path, text, words):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with one_line(CheckpointError, match=words) as refusal:
        bounded.read_strict_yaml(path)
    assert len(str(refusal.value)) < 500


def test_lines_are_read_one_by_one(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"a\r\nb\xff\n\nlast")
    assert list(bounded.lines(path)) == ["a", "b\N{REPLACEMENT CHARACTER}", "", "last"]
    path.write_bytes(b"a\n" + bytes(bounded.LONGEST + 1))
    with pytest.raises(CheckpointError, match="a line of more than"):
        list(bounded.lines(path))
