"""A manifest says the same after any number of readings, and a broken one is named, never believed."""

import dataclasses
import json
import math

import pytest

from peakpoint.base.errors import CheckpointError, FormatError
from peakpoint.base.text import readable
from peakpoint.checkpointing.storage.manifest import Manifest, read_manifest, sealed
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import one_line


def write(tmp_path, text, name="training/a.json"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_written_and_read_it_is_the_same(tmp_path):
    whole = manifest(
        "milestone/best_accuracy_0.8500_epoch_0007.pt",
        tags=("best_accuracy", "top_k"),
        policies=("best", "top_k"),
        reasons=("0.85 beats 0.8", 'with "quotes", ü and \n'),
        metrics={"accuracy": 0.1 + 0.2, "loss": math.nan, "up": math.inf, "down": -math.inf},
        sparsity=0.7,
        sequence=12,
        bytes=345,
        digest=f"blake3:{'ab' * 32}",
        created="2025-01-02T03:04:05.678+00:00",
        git_commit="abc",
    )
    text = whole.to_json()
    path = write(tmp_path, text, "milestone/best_accuracy_0.8500_epoch_0007.json")
    back = read_manifest(path)
    assert repr(back) == repr(whole)
    assert back.to_json() == text
    assert json.loads(text)["metrics"] == {
        "accuracy": 0.30000000000000004, "loss": "nan", "up": "inf", "down": "-inf",
    }  # fmt: skip


def test_it_is_standard_json():
    text = manifest(metrics={"loss": math.nan}).to_json()

    def never(word):
        raise AssertionError(word)

    json.loads(text, parse_constant=never)


@pytest.mark.parametrize(
    ("value", "coded"),
    [(0.5, 0.5), (1e308, 1e308), (math.nan, "nan"), (math.inf, "inf")],
)
def test_numbers_that_json_has_not_become_words(value, coded):
    assert readable(value) == coded
    assert repr(float(readable(value))) == repr(value)


@pytest.mark.parametrize("claimed", ["../../../etc/passwd", "/etc/passwd", "milestone/other.pt", "", None, 3])
def test_where_it_lies_says_which_file_it_describes(tmp_path, claimed):
    plain = json.loads(manifest("training/a.pt").to_json()) | {"file": claimed, "tier": "../.."}
    found = read_manifest(write(tmp_path, sealed(json.dumps(plain))))
    assert (found.tier, found.file) == ("training", "training/a.pt")


def test_what_a_later_version_adds_is_passed_over(tmp_path):
    plain = json.loads(manifest().to_json()) | {"mirrored_to": "s3://bucket"}
    assert read_manifest(write(tmp_path, sealed(json.dumps(plain)))).epoch == 1


def changed(**facts):
    return sealed(json.dumps(json.loads(manifest().to_json()) | facts))


def without(key):
    plain = json.loads(manifest().to_json())
    del plain[key]
    return sealed(json.dumps(plain))


BROKEN = {
    "empty": "",
    "torn": manifest().to_json()[:100],
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "no format": without("format"),
    "no tags": without("tags"),
    "tags that are none": changed(tags=3),
    "no epoch": without("epoch"),
    "no run": without("run"),
    "an epoch of text": changed(epoch="seven"),
    "a step of text": changed(global_step="70"),
    "a run that is a number": changed(run=3),
    "a sequence of text": changed(sequence="1"),
    "a digest that is none": changed(digest=None),
    "a size of text": changed(bytes="345"),
    "metrics that are a list": changed(metrics=[1]),
    "a metric of text": changed(metrics={"accuracy": "high"}),
    "a sparsity of text": changed(sparsity="most"),
    "tags of numbers": changed(tags=[1]),
    "a reason that is none": changed(reasons=[1]),
    "more reasons than tags": changed(reasons=["a", "b"]),
    "a tag that leads elsewhere": changed(tags=["../../x"]),
    "a tag of a hidden file": changed(tags=[".x"]),
    "an epoch that is a truth": changed(epoch=True),
    "a step that no column holds": changed(global_step=10**30),
    "a metric beyond numbers": changed(metrics={"accuracy": 10**400}),
    "a negative sequence": changed(sequence=-1),
    "a digest that is a path": changed(digest="../" * 20),
    "a time that is a number": changed(created=5),
    "metadata of text": changed(metadata="x"),
    "a configuration of text": changed(config="x"),
    "metrics that are text": changed(metrics="x"),
    "nested too deep": "[" * 100_000,
    "another value": manifest().to_json().replace('"epoch": 1', '"epoch": 2'),
    "no digest of its own": json.dumps(json.loads(manifest().to_json())),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_one_is_named(tmp_path, text):
    path = write(tmp_path, text)
    with one_line(CheckpointError, match=r"a\.json is not a readable checkpoint manifest"):
        read_manifest(path)


@pytest.mark.parametrize("version", [0, 3, "1"])
def test_one_of_another_version_is_named_as_that(tmp_path, version):
    with pytest.raises(FormatError, match=f"is of format {version}, and this version reads up to 2: use the"):
        read_manifest(write(tmp_path, changed(format=version)))


def test_one_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_manifest(tmp_path / "a.json")


def test_each_is_itself():
    """Two checkpoints may say the same of themselves and are two all the same."""
    one, other = manifest(), manifest()
    assert one != other
    assert len({one, other}) == 2
    assert dataclasses.replace(one, epoch=2).epoch == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.epoch = 3  # type: ignore[misc]
    assert isinstance(one, Manifest)
