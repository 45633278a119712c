"""Rules in YAML: what ships is sound, a file replaces keys of the default, each mistake is one line."""

import pytest

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.selection import rules
from peakpoint.deployment.selection.rules import Key, Requirement, Tie
from tests.conftest import one_line


def written(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_what_ships_is_sound():
    names = sorted(path.stem for path in rules.FOLDER.glob("*.yaml"))
    assert names == ["best_practice", "default"]
    assert [rules.load(name).name for name in names] == ["best_practice.yaml", "default.yaml"]
    # No number that only some runs can reach: the default is for any of them.
    assert all(r.vs for r in rules.load().require)


def test_the_best_practice_is_that_of_the_document():
    found = rules.load("best_practice")
    assert found.require == [
        Requirement(metric="accuracy", above=0.7),
        Requirement(metric="sparsity", min=0.5),
        Requirement(metric="epoch", above=20),
    ]
    assert (list(map(str, found.rank)), found.tie) == (["accuracy"], None)


def test_a_file_replaces_the_keys_that_it_has(tmp_path):
    text = "rank: [f1_score, -bytes, {metric: latency_ms, mode: min}]\ntie: null\n"
    found, default = rules.load(written(tmp_path, text)), rules.load()
    assert list(map(str, found.rank)) == ["f1_score", "-bytes", "-latency_ms"]
    assert found.tie is None
    assert (found.require, found.verify, found.latency) == (default.require, default.verify, default.latency)
    assert rules.load(written(tmp_path, "")).require == default.require


def test_every_form_of_a_rule(tmp_path):
    text = """
require:
  - {metric: accuracy, min: 0.7, below: 1}
  - {metric: accuracy, vs: champion, min_delta: -1e-2, min_ratio: 0.99}
  - {metric: sparsity, vs: target, min_delta: 0}
rank: -loss
tie: {metric: loss, within: 0.01, prefer: [sparsity, -bytes]}
"""
    found = rules.load(written(tmp_path, text))
    assert [(r.metric, r.vs, r.bounds) for r in found.require] == [
        ("accuracy", None, {"min": 0.7, "below": 1}),
        ("accuracy", "champion", {"min_delta": -0.01, "min_ratio": 0.99}),
        ("sparsity", "target", {"min_delta": 0}),
    ]
    least, size = Key(metric="sparsity", mode="max"), Key(metric="bytes", mode="min")
    assert found.tie == Tie(metric="loss", within=0.01, prefer=[least, size])
    assert found.metrics == ["accuracy", "sparsity", "loss", "bytes"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("requires: []", "requires is not a key of this configuration: did you mean require?"),
        ("[1, 2]", "no keys with values"),
        ("require: {metric: accuracy}", "require is .* must be a list"),
        ("require: [accuracy]", r"require\[0\]: 'accuracy' stands where keys are expected, such as metric"),
        ("require: [{metric: accuracy, mim: 1}]", r"require\[0\]: mim is not a key .*: did you mean min?"),
        ("require: [{metric: accuracy}]", r"accuracy has no bound: add one of min"),
        ("require: [{metric: loss, max: 1}, {min: 1}]", r"require\[1\]: metric has no value"),
        ("require: [{metric: accuracy, min: high}]", r"min=high is not a number"),
        ("require: [{metric: accuracy, min: .nan}]", r"min=nan is not a number"),
        ("require: [{metric: accuracy, min: true}]", r"min=True is not a number"),
        ("require: [{metric: accuracy, min: [1]}]", r"min=\[1\] is not a number"),
        (
            "require: [{metric: accuracy, min_delta: 0}]",
            "min_delta is a margin to .*, and without vs there",
        ),
        ("require: [{metric: accuracy, vs: champion, min: 0}]", r"min is no margin, and with vs=champion"),
        ("require: [{metric: accuracy, vs: best, min_delta: 0}]", r"vs=best must be champion or target"),
        ("require: [{metric: accuracy, vs: [a], min_delta: 0}]", r"require\[0\]: vs: Cannot convert"),
        ("require: [{metric: accuracy, vs: target, min_delta: 0}]", "accuracy has no target"),
        ("require: [{metric: bytes, vs: champion, max_ratio: -1}]", "max_ratio=-1.0 is out .* at least 0"),
        ("require: [{metric: '', min: 1}]", r"require\[0\]: a metric has no name"),
        ("rank: ['']", "a metric has no name: write one"),
        ("rank: ['-']", "a metric has no name: write one"),
        ("rank: []", "rank is empty"),
        ("rank: [accuracy, accuracy]", "rank names accuracy twice"),
        ("rank: [loss]\ntie: null", "write -loss"),
        ("rank: [{metric: accuracy, mode: up}]", "accuracy: mode=up must be max or min"),
        ("rank: [{metric: accuracy}]", r"rank\[0\].mode has no value"),
        ("rank: [3]", r"rank\[0\]: 3 stands where keys are expected"),
        ("rank: [-loss]", "tie.metric is accuracy, but rank begins with loss"),
        ("tie: {metric: accuracy, prefer: sparsity}", "either confidence, such as 0.95, or within"),
        ("tie: {metric: accuracy, confidence: 95, prefer: sparsity}", "between 0 and 1"),
        ("tie: {metric: accuracy, confidence: 0.9}", "tie.prefer has no value"),
        ("tie: [accuracy]", r"tie: \['accuracy'\] stands where keys are expected"),
        ("rank: [f1_score]\ntie: {metric: f1_score, confidence: 0.9, prefer: sparsity}", "use tie.within"),
        ("verify: {tolerence: 0.1}", "verify.tolerence is not a key .*: did you mean verify.tolerance?"),
        ("verify: {}", "verify.tolerance has no value"),
        ("verify: null", "verify=null: it needs a value"),
        ("verify: {tolerance: -1}", "at least 0"),
        (
            "latency: {batch: 0, repeats: 2, warmup: 0}",
            "latency.batch=0 is out of range: .*and 65536",
        ),
        ("latency: {batch: 1, repeats: 1, warmup: 0}", "latency.repeats=1 is out of range: .* at least 2"),
        ("latency: {batch: 1, repeats: 2.5, warmup: 0}", "latency.repeats=2.5 is not a whole number"),
        ("rank: [accuracy", "is not YAML"),
        ("require: []\nrank: [accuracy]\nrequire: []", "is not YAML: require is there twice at line 3"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file_and_the_key(tmp_path, text, line):
    with one_line(CheckpointError, match=line) as caught:
        rules.load(written(tmp_path, text))
    assert "mine.yaml" in str(caught.value)


def test_a_name_that_does_not_exist(tmp_path):
    with pytest.raises(CheckpointError, match=r"did you mean best_practice\?"):
        rules.load("best_practise")
    with pytest.raises(CheckpointError, match="neither a file nor rules"):
        rules.load(tmp_path)
