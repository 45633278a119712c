"""Versions: their order against the text of semver.org, what is taken, and what a bump must say."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakpoint.base import semver
from peakpoint.base.errors import CheckpointError
from tests.checkpointing.publish_cases import DESCRIPTION

NUMBER = st.one_of(st.integers(0, 12), st.integers(0, 10**12)).map(str)
WORD = st.from_regex(r"[0-9]*[A-Za-z-][0-9A-Za-z-]{0,5}", fullmatch=True)
TAIL = st.lists(st.one_of(NUMBER, WORD), min_size=1, max_size=3).map(".".join)
VERSION = st.builds(
    lambda core, pre, build: ".".join(core) + (f"-{pre}" if pre else "") + (f"+{build}" if build else ""),
    st.tuples(NUMBER, NUMBER, NUMBER),
    st.one_of(st.none(), TAIL),
    st.one_of(st.none(), TAIL),
).filter(lambda text: len(text) <= semver.LONGEST and not text.endswith(".config"))


def before(a: str, b: str) -> bool:
    """Whether `a` precedes `b`: section 11 of semver.org, clause by clause."""
    (a, b) = (text.partition("+")[0] for text in (a, b))
    (core_a, _, pre_a), (core_b, _, pre_b) = a.partition("-"), b.partition("-")
    cores = [tuple(map(int, core.split("."))) for core in (core_a, core_b)]
    if cores[0] != cores[1]:
        return cores[0] < cores[1]
    if not pre_a or not pre_b:
        return bool(pre_a) and not pre_b
    words_a, words_b = pre_a.split("."), pre_b.split(".")
    for x, y in zip(words_a, words_b, strict=False):
        if x != y:
            numeric = (x.isdigit(), y.isdigit())
            if all(numeric):
                return int(x) < int(y)
            return numeric[0] if any(numeric) else x < y
    return len(words_a) < len(words_b)


@given(VERSION, VERSION)
def test_the_order_is_that_of_the_specification(a, b):
    assert (semver.key(a) < semver.key(b)) == before(a, b)
    assert (semver.key(a) == semver.key(b)) == (not before(a, b) and not before(b, a))


@given(st.text(alphabet="0123456789.-+abv \n\u0661\uff11", max_size=12))
def test_anything_else_is_refused(text):
    word = r"(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)"
    form = r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){2}"
    form += rf"(-{word}(\.{word})*)?(\+[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?"
    if re.fullmatch(form, text):
        semver.key(text)
    else:
        with pytest.raises(CheckpointError, match="is not a semantic version: give it as in"):
            semver.key(text)


@pytest.mark.parametrize("text", ["1.0.0-" + "a" * 60, "9" * 5000 + ".0.0", "1.0.0-rc.config", "", 1])
def test_what_no_file_name_can_hold_is_refused(text):
    with pytest.raises(CheckpointError) as refused:
        semver.key(text)
    assert len(str(refused.value)) < 200


def test_equal_precedence_is_taken():
    semver.check_unused("1.0.1", ["1.0.0", "1.0.1-rc.1"])
    with pytest.raises(CheckpointError, match=r"^Version 1\.0\.0 is released already: a release is never"):
        semver.check_unused("1.0.0", ["0.9.0", "1.0.0"])
    with pytest.raises(CheckpointError, match=r"1\.0\.0\+b is released already, as 1\.0\.0\+a"):
        semver.check_unused("1.0.0+b", ["1.0.0+a"])


@pytest.mark.parametrize(
    ("version", "released", "expected"),
    [
        ("1.2.0", ["1.0.0", "1.1.0", "2.0.0"], "1.1.0"),
        ("1.0.1", ["1.0.0", "1.1.0"], "1.0.0"),  # a patch to an older line
        ("1.10.0", ["1.9.0", "1.2.0"], "1.9.0"),
        ("2.0.0", ["1.0.0"], None),
        ("1.0.0", ["0.9.0"], None),
        ("1.0.0", ["1.1.0", "1.3.0"], "1.1.0"),  # late: those above it promised the same
        ("2.0.0", ["1.0.0", "2.0.0-rc.1"], None),  # a prerelease promises nothing
        ("1.1.0-rc.1", ["1.0.0"], "1.0.0"),
        ("0.2.1", ["0.1.0", "0.2.0"], "0.2.0"),
        ("0.3.0", ["0.1.0", "0.2.0"], None),
        ("1.0.0", [], None),
    ],
)
def test_what_a_version_must_fit(version, released, expected):
    assert semver.neighbour(version, released) == expected


@pytest.mark.parametrize(
    ("version", "released", "fitting"),
    [
        ("1.2.0", ["1.1.0"], "major version: 2.0.0"),
        ("1.2.0", ["1.1.0", "3.0.0", "4.0.0-rc.1"], "major version: 5.0.0"),
        ("0.2.1", ["0.2.0", "0.4.0"], "minor version: 0.5.0"),
    ],
)
def test_the_version_that_would_be_right_is_reported(version, released, fitting):
    with pytest.raises(CheckpointError, match=rf"would not fit {released[0]}: x is new\. .* {fitting}\.$"):
        semver.check_bump(version, released, released[0], ["x is new"])
    semver.check_bump(version, released, released[0], [])


def changed(*path, value):
    config = DESCRIPTION.config()
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return semver.changes(DESCRIPTION.config(), config)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "name"), "resnet20", "the model is resnet20 and was lenet5"),
        (("model", "options"), {"dropout": 0.5}, "the model's option dropout is 0.5 and was 0.0"),
        (("model", "options"), {"dropout": 0.0, "width": 2}, "the model's option width is new (2)"),
        (("model", "options"), {}, "the model's option dropout is gone (it was 0.0)"),
        (("input", "shape"), [3, 16, 16], "the input's shape is [3, 16, 16] and was [3, 12, 12]"),
        (("input", "mean"), [0.5, 0.5, 0.4], "the input's mean is [0.5, 0.5, 0.4] and was [0.5, 0.5, 0.5]"),
        (("input", "std"), [0.2, 0.2, 0.2], "the input's std is [0.2, 0.2, 0.2] and was [0.25, 0.25, 0.25]"),
        (("output", "classes"), ["a", "b"], "the list of classes has 2 entries and had 4"),
        (("output", "classes"), list("abce"), "the list of classes is ['a', 'b', 'c', 'e'] and was"),
    ],
)
def test_what_changed_is_named(path, value, message):
    (only,) = changed(*path, value=value)
    assert only.startswith(message)


def test_the_mean_of_another_draw_of_the_data_is_the_same_input():
    assert changed("input", "mean", value=[0.5004, 0.4991, 0.5]) == []
    assert changed("input", "std", value=[0.2504, 0.2491, 0.25]) == []
    for odd in ([0.5, 0.5], ["a", "b", "c"], None, 0.5):
        (only,) = changed("input", "mean", value=odd)
        assert only.startswith("the input's mean")


def test_nothing_changed_and_configs_of_another_form_say_nothing():
    assert changed("input", "layout", value="NCHW") == []
    assert semver.changes({"d_model": 1}, DESCRIPTION.config()) == []
    assert semver.changes({}, {}) == []


def test_weights_that_came_went_or_grew_are_named():
    before, now = {"a": [1], "b": [2, 3], "c": [4]}, {"b": [2, 4], "c": [4], "d": []}
    assert semver.shape_changes(before, now) == [
        "a is gone (it was [1])",
        "b is [2, 4] and was [2, 3]",
        "d is new ([])",
    ]
    assert semver.shape_changes(before, before) == []
