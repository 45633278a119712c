"""Overrides as text: split and quoted, and under the keys of today where earlier versions had others."""

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from peakpoint.base.errors import UserError
from peakpoint.trainer.config import commandline
from peakpoint.trainer.config.choices import leaves, register_schemas
from peakpoint.trainer.config.hydra_overrides import (
    RENAMED,
    current_config,
    quote,
    renamed,
    split,
    under,
    unquote,
)


def test_every_new_name_is_a_key_and_is_typed_as_it_is():
    register_schemas()
    for old, new in RENAMED.items():
        assert new in leaves()
        known = {"tensorboard": "false", "pruning.method": "none", "checkpoint.mirror_what": "[last]"}
        value = known.get(old, "5")
        values = (value, shlex.quote(f"{new}={'[console]' if old == 'tensorboard' else value}"))
        with pytest.raises(UserError, match=re.escape(f"{old} is set as {new}: type {values[1]}") + "$"):
            commandline.overrides([f"{old}={values[0]}"])
        (typed,) = shlex.split(values[1])
        assert commandline.overrides([typed]) == [typed]


@pytest.mark.parametrize(
    ("recorded", "current"),
    [
        ("checkpoint.mirror.url=s3://b/x", "checkpoint.mirror.url=s3://b/x"),
        ("checkpoint.mirror.what=[milestone,training]", "checkpoint.mirror.what=[milestone,training]"),
        ("++checkpoint.policy.interval.steps=3", "++checkpoint.interval_steps=3"),
        ("checkpoint.mirror.url={url: x}", "checkpoint.mirror.url={url: x}"),
        ("pruning.variant=bitter0", "pruning.criterion=bitter0"),
        ("optimizer.variant=bitter0", "pruning.criterion=bitter0"),
        ("pruning.method=regrow", "pruning=regrow"),
        ("checkpoint.interval=3", "checkpoint.interval=3"),
        ("~checkpoint.policy.best", "~checkpoint.policy.best"),
        ("tensorboard=False", "logger=[console]"),
        ("tensorboard=true", "logger=[console,tensorboard]"),
        ("plugins=[a]", "plugins=[a]"),
        ("not an override", "not an override"),
    ],
)
def test_an_override_of_a_record_has_the_keys_of_today(recorded, current):
    assert (renamed(recorded) or recorded) == current


def test_a_recorded_configuration_has_the_keys_of_today():
    earlier = {
        "epochs": 3,
        "tensorboard": True,
        "checkpoint": {
            "interval": 10,
            "interval_minutes": 60,
            "mirror": "s3://b/x",
            "mirror_keep": 2,
            "policy": {
                "interval": {"epochs": 5, "steps": "${checkpoint.interval_steps}", "keep_last": 3},
                "wall_clock": {"minutes": "${checkpoint.interval_minutes}", "keep_last": 3},
            },
        },
    }
    assert current_config(earlier) == {
        "epochs": 3,
        "logger": {"console": {}, "tensorboard": {}},
        "checkpoint": {
            "interval": 5,
            "interval_minutes": 60,
            "mirror": {"url": "s3://b/x", "keep": 2},
            "policy": {"interval": {"keep_last": 3}, "wall_clock": {"keep_last": 3}},
        },
    }


@pytest.mark.parametrize(
    ("method", "variant", "criterion", "regrow"),
    [
        ("state", "${oc.select:optimizer.variant,bitter7}", "bitter0", "none"),
        ("state", "bitter7", "bitter7", "none"),
        ("state", "", None, "none"),
        ("magnitude", "", "magnitude", "none"),
        ("none", "", None, "none"),
        ("regrow", "", None, "all"),
    ],
)
def test_a_recorded_method_and_two_variants_are_one_criterion(method, variant, criterion, regrow):
    earlier = {
        "optimizer": {"name": "x", "variant": "bitter0"},
        "pruning": {"method": method, "variant": variant},
    }
    assert current_config(earlier) == {
        "optimizer": {"name": "x"},
        "pruning": {"criterion": criterion, "regrow": regrow},
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "mirror_keep: 2",
            "checkpoint.mirror_keep is not a key of this configuration: did you mean checkpoint.mirror.keep?",
        ),
        (
            "mirror: s3://b/x",
            "checkpoint.mirror: s3://b/x stands where keys are expected, such as checkpoint.mirror.url.",
        ),
    ],
)
def test_an_earlier_key_in_a_file_is_one_line_with_the_new_one(train, tmp_path, text, sentence):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "a.yaml").write_text(f"# @package _global_\ncheckpoint: {{{text}}}\n")
    done = train("--config-dir=mine", "experiment=a")
    assert (done.code, done.err) == (1, f"error: {sentence}\n")


ARGUMENTS = [
    ("epochs=3", "epochs", "3"),
    ("++optimizer.lr=1", "optimizer.lr", "1"),
    ("~checkpoint.policy.best", "checkpoint.policy.best", ""),
    ("checkpoint/policy=[interval,best]", "checkpoint/policy", "[interval,best]"),
    ("/data@data=digits", "/data@data", "digits"),
    ("resume=my runs/a b", "resume", "my runs/a b"),
    ("data.root=", "data.root", ""),
    ("a=b\nc", "a", "b\nc"),
    ("-m", None, "-m"),
    ("--config-dir=x", None, "--config-dir=x"),
    ("resume", None, "resume"),
    ("=3", None, "=3"),
    ("", None, ""),
]


@pytest.mark.parametrize(("argument", "key", "value"), ARGUMENTS, ids=[a for a, *_ in ARGUMENTS])
def test_an_argument_as_key_and_value(argument, key, value):
    assert split(argument) == (key, value)


@given(st.text(alphabet=st.sampled_from("ab \\\"'=,[]{}:~+/ü#%()"), max_size=12))
@example("a\\b")
@example("\\\\")
@example('\\"')
@example("a\\\\'")
def test_quoted_hydra_reads_a_value_literally(value):
    assert OverridesParser.create().parse_override(f"key={quote(value)}").value() == value
    assert unquote(quote(value)) == value


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("'a b'", "a b"),
        (r"'it\'s'", "it's"),
        (r'"a\b"', r"a\b"),
        ("'", "'"),
        ("'a\"", "'a\""),
    ],
)
def test_a_value_without_its_quotes(typed, value):
    assert unquote(typed) == value


def test_what_lies_under_a_key():
    assert under("data.root", ("data",))
    assert under("checkpoint.policy.best", ("checkpoint/policy",))
    assert under("seed", ("data", "seed"))
    assert not under("database", ("data",))
    assert not under("data", ("data.root",))
