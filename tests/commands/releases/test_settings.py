"""conf/release: every value has a type, and what is wrong is one line with the nearest right name."""

from dataclasses import fields

import pytest
import yaml

from peakpoint.base.errors import CheckpointError
from peakpoint.commands.releases import settings
from peakpoint.deployment.release import card
from peakpoint.trainer.config.choices import all_choices
from tests.conftest import one_line


def refusal(*changes, card=None):
    with one_line(CheckpointError) as refused:
        settings.load(changes, card)
    return str(refused.value)


def test_the_files_say_every_value_and_the_classes_none():
    loaded = settings.load([], None)
    for schema, name in ((settings.Settings, "default.yaml"), (card.Texts, "card.yaml")):
        message = yaml.safe_load((settings.RELEASE / name).read_text())
        assert {f.name for f in fields(schema)} - {"card"} == set(message) - {"defaults"}
        for field in fields(schema):
            assert "MISSING" in repr(field.default) or field.default == "???"
    assert (loaded.format, loaded.dtype, loaded.compress, loaded.sign) == ("pt", "float32", False, None)


def test_no_text_is_given_beforehand():
    with pytest.raises(CheckpointError, match="lacks description, intended_use, limitations, ethical_"):
        card.check(vars(settings.load([], None).card), "it")


def test_a_file_of_texts_then_each_change_in_turn(tmp_path):
    (tmp_path / "card.yaml").write_text("description: theirs\nlimitations: [a, b]\nlicense: mit\n")
    loaded = settings.load(
        ["dtype=float16", "card.license=cc0-1.0", "dtype=bfloat16", "sign=~/key"], tmp_path / "card.yaml"
    )
    assert (loaded.dtype, loaded.sign) == ("bfloat16", "~/key")
    assert (loaded.card.description, loaded.card.limitations) == ("theirs", ["a", "b"])
    assert (loaded.card.license, loaded.card.contact) == ("cc0-1.0", None)


@pytest.mark.parametrize(
    "text", ["a: b", "x # y", "{", "it's", "${oc.env:HOME}", "\\${x} ${y", "3", "no", "?"]
)
def test_a_text_is_taken_as_it_is_written(text, tmp_path):
    assert settings.load([f"card.description={text}"], None).card.description == text
    (tmp_path / "card.yaml").write_text(yaml.safe_dump({"description": text, "tags": [text]}))
    loaded = settings.load([], tmp_path / "card.yaml").card
    assert (loaded.description, loaded.tags) == (text, [text])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("dtyp=float16", "--set dtyp is not a key of this configuration: did you mean dtype?"),
        (
            "card.licence=mit",
            "--set card.licence is not a key of this configuration: did you mean card.license?",
        ),
        ("zzz=1", "there are: card, compress, dtype, format, golden"),
        ("format", "--set format: give it as key=value, such as --set dtype=float16."),
        ("=3", "give it as key=value"),
        ("+more=3", "give it as key=value"),
        ("hydra.run.dir=x", "give it as key=value"),
        ("compress=maybe", "--set compress=maybe is not true or false."),
        ("tolerance=much", "--set tolerance=much is not a number."),
        ("tolerance=nan", "tolerance=nan is out of range: it must be between 0 and 1."),
        ("tolerance=-1", "tolerance=-1.0 is out of range"),
        ("golden=0", "golden=0 is out of range: it must be between 1 and 1024."),
        ("golden=100000", "golden=100000 is out of range"),
        ("split=tset", "split=tset is not a choice: did you mean test?"),
        ("format=null", "--set format=null: it needs a value."),
        ("card=null", "--set card=null: it needs a value."),
        ("card.tags=3", "--set card.tags is a list"),
        ("card.limitations=[1, 2]", "card.limitations=[1, 2] is neither a text nor a list of texts."),
        ("format={a: [}", "--set format={a: [} cannot be read: "),
        ("sign.key=x", "--set sign"),
    ],
)
def test_a_wrong_change_is_one_line(change, sentence):
    assert sentence in refusal(change)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            b"descripton: x",
            "card.descripton is not a key of this configuration: did you mean card.description?",
        ),
        (b"\xff\xfe", "is not YAML: "),
        (b"tags: null\n", "card.tags=null: it needs a value."),
        (b"contact: 2020-01-01\n", "contact: "),
        (b"1: 2\n", "1 is not a key"),
    ],
)
def test_a_wrong_file_of_texts_is_one_line_that_names_it(content, sentence, tmp_path):
    path = tmp_path / "card.yaml"
    path.write_bytes(content)
    message = refusal(card=path)
    assert message.startswith(str(path))
    assert sentence in message


def test_a_file_of_texts_that_is_not_there(tmp_path):
    assert (
        refusal(card=tmp_path / "no.yaml")
        == f"{tmp_path / 'no.yaml'} cannot be read: No such file or directory."
    )
    (tmp_path / "empty.yaml").write_text("")
    assert settings.load([], tmp_path / "empty.yaml").card.description is None


def test_the_trainer_does_not_offer_it():
    assert "release" not in all_choices()
    assert "checkpoint/policy: " in all_choices()
    assert "pruning.schedule: convex, cosine, cubic, linear" in all_choices()
