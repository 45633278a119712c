"""The model card: what it must say, and that the Hugging Face Hub's own library reads it."""

import json
import math
from types import MappingProxyType

import pytest
from huggingface_hub import ModelCard

from peakpoint.base.errors import CheckpointError
from peakpoint.deployment.release import card
from peakpoint.deployment.release.card import Result
from peakpoint.deployment.release.card_page import markdown

TEXTS = {
    "description": "Tells ten digits from each other.",
    "intended_use": "Teaching.",
    "limitations": ["Digits of one hand | of 1998.", "8 x 8 pixels."],
    "ethical_considerations": ["None of the writers is known."],
    "license": "Apache-2.0",
    "tags": ["digits"],
}
MODEL = {
    "model": {"name": "lenet5", "options": {"dropout": 0.3}},
    "input": {
        "layout": "NCHW",
        "dtype": "float32",
        "shape": [1, 8, 8],
        "scale": "bytes / 255, less mean, by std",
        "mean": [0.3],
        "std": [0.4],
    },
    "output": {"kind": "logits", "classes": [f"digit {n}" for n in range(20)]},
}


FORM = {"format": "safetensors", "dtype": "float16", "compress": False}
PEAK = {"scope": "overall", "best_epoch": 63, "best": 0.7468, "final": 0.7056, "degradation": 0.0412}
RECORD = {
    "data": {"name": "digits", "train_size": 1437, "val_size": 360, "train_sha256": "ab" * 32},
    "training": {
        "epoch": 63,
        "global_step": 1449,
        "hours": 0.25,
        "optimizer": {"name": "adamwprune", "lr": 0.003, "clip_norm": None},
        "peaks": [{"metric": "accuracy", **PEAK}],
    },
    "provenance": {"run": "abc", "git_commit": "def", "source": {"file": "milestone/a.pt"}},
}


def built(texts=MappingProxyType({}), **changes):
    plain = {
        "version": "1.2.0",
        "model": MODEL,
        "weights": FORM | {"parameters": 61706, "nonzero": 20000, "sparsity": 0.7001},
        "results": [
            Result("val", 360, {"accuracy": 0.9389, "loss": 0.21, "top5_accuracy": 0.99}, "the released"),
            Result("test", None, {"accuracy": 0.93, "f1_score": 0.925, "odd": 3.0}, "the same"),
        ],
        "record": RECORD,
    }
    return card.build(TEXTS | texts, **(plain | changes))


def test_the_hub_reads_it():
    page = ModelCard(markdown(built()))
    page.data.to_dict()
    assert (page.data.license, page.data.library_name) == ("apache-2.0", "pytorch")
    assert page.data.tags == ["pytorch", "peakpoint", "lenet5", "adamwprune", "pruning", "sparse", "digits"]
    assert (page.data.datasets, page.data.metrics) == (["digits"], ["accuracy", "f1"])
    assert page.data.model_name == "lenet5"
    results = {(r.dataset_split, r.metric_name): r for r in page.data.eval_results}
    first = results["validation", "Accuracy"]
    assert (first.task_type, first.dataset_type) == ("image-classification", "digits")
    assert (first.metric_type, first.metric_value) == ("accuracy", 0.9389)
    names = [("validation", name) for name in ("Accuracy", "Top-5 accuracy", "Cross-entropy, nats")]
    assert set(results) == {*names, ("test", "Accuracy"), ("test", "F1, macro")}


def test_every_section_is_there_and_filled():
    text = markdown(built())
    for line in (
        "# lenet5 v1.2.0\n\nTells ten digits from each other.\n",
        "| Network | lenet5 (dropout 0.3) |",
        "| Parameters | 61,706, 20,000 of them not zero |",
        "| Sparsity of the prunable weights | 70.01% |",
        "| Sparsity of all parameters | 67.59% |",
        "| Input | NCHW, float32, 1x8x8: bytes / 255, less mean, by std |",
        "| File | safetensors, float16 |",
        "## Intended use\n\nTeaching.\n",
        "## Limitations\n\n- Digits of one hand | of 1998.\n- 8 x 8 pixels.\n",
        "## Ethical considerations\n\n- None of the writers is known.\n",
        'load_model("production/lenet5_v1.2.0.safetensors")',
        "| Split | Images | Accuracy | Cross-entropy, nats | Top-5 accuracy | F1, macro | odd | Of |",
        "| validation | 360 | 93.89% | 0.2100 | 99.00% | - | - | the released |",
        "| test | - | 93.00% | - | - | 92.50% | 3.0000 | the same |",
        "| Training images | 1,437 |",
        "| Epoch, step | 63, 1449 |",
        "| Time | 15.0 minutes |",
        "| Optimizer | name adamwprune, lr 0.003 |",
        "| overall | 63 | 74.68% | 70.56% | 4.12% |",
        "| Source | file milestone/a.pt |",
    ):
        assert line in text
    assert "Out of scope" not in text  # nothing was stated


def test_the_card_for_machines_is_strict_json_with_the_names_of_the_guide():
    found = built()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    guide = {"description", "dataset", "performance", "intended_use", "training_epochs", "limitations"}
    assert guide | {"training_time_hours", "ethical_considerations"} <= found.keys()
    assert (found["training_epochs"], found["dataset"]) == (63, "digits")
    assert found["performance"]["accuracy"] == 0.9389


@pytest.mark.parametrize(
    "nothing", [None, "", "  \n", "TODO", "tbd", "...", "???", "-", [], ["", None], ["TODO"]]
)
@pytest.mark.parametrize("name", card.REQUIRED)
def test_a_required_text_that_is_missing_is_named(name, nothing):
    card.check(TEXTS, "it there")
    with pytest.raises(CheckpointError) as refused:
        card.check(TEXTS | {name: nothing}, "it there")
    assert str(refused.value) == f"The model card lacks {name}: write it there."


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("MIT", {"license": "mit"}),
        ("cc-by-4.0", {"license": "cc-by-4.0"}),
        ("Our Own 2", {"license": "other", "license_name": "Our Own 2", "license_link": "https://x.y"}),
    ],
)
def test_licenses_are_those_that_the_hub_takes(given, expected):
    page = markdown(built({"license": given, "license_link": "https://x.y"}))
    found = ModelCard(page).data.to_dict()
    assert {k: v for k, v in found.items() if k.startswith("license")} == expected


@pytest.mark.parametrize(
    "text",
    ["yes", "a: b", "# c", "'quoted' \"twice\"", "*star*\n---\nb: c", "é 例", "- list", "{x} [y] & !z"],
)
def test_any_text_stays_text(text):
    page = ModelCard(
        markdown(built({"description": text, "license": text, "tags": [text], "language": text}))
    )
    assert text.strip() in page.text
    assert (page.data.license_name, page.data.tags[-1], page.data.language) == (text, text, text)


def test_values_that_are_not_finite_are_shown_to_people_alone():
    unmeasured = Result("test", 3, {"loss": math.inf}, "x")
    text = markdown(built(results=[Result("val", 3, {"loss": math.nan, "accuracy": 0.5}, "x"), unmeasured]))
    page = ModelCard(text)
    assert [(r.dataset_split, r.metric_value) for r in page.data.eval_results] == [("validation", 0.5)]
    assert "| validation | 3 | nan | 50.00% | x |" in text


def test_a_record_that_says_little():
    text = markdown(built(results=[], weights={}, record={"data": {}, "training": {}, "provenance": {}}))
    assert ModelCard(text).data.eval_results is None
    for absent in ("Results", "Provenance", "Training", "How to use", "None"):
        assert f"## {absent}" not in text
    assert "None" not in text.replace("None of the writers", "")


def page_of(given, **metrics):
    return markdown(card.of_any(given, name="sentiment", version="1.0.0", metrics=metrics))


def test_a_card_of_the_librarys_user():
    theirs = {
        "description": "Bayesian Transformer",
        "dataset": "IMDB (50K reviews)",
        "limitations": ["English text only", "Max 512 tokens"],
        "training_epochs": 10,
        "license": "mit",
        "performance": {"accuracy": 92, "odd": "yes"},
    }
    text = page_of(theirs, accuracy=0.92)
    page = ModelCard(text)
    assert (page.data.license, page.data.pipeline_tag, page.data.tags) == ("mit", None, ["pytorch"])
    assert page.data.datasets is None  # no name on the Hub
    assert text.startswith("---\n")
    for line in (
        "# sentiment v1.0.0\n\nBayesian Transformer\n",
        "## Limitations\n\n- English text only\n- Max 512 tokens\n",
        "| Accuracy | 92 |",  # theirs may be in percent
        "| odd | yes |",
        "| Data | IMDB (50K reviews) |",
        "| training_epochs | 10 |",
    ):
        assert line in text
    assert "| Accuracy | 0.92 |" in page_of({"description": "d"}, accuracy=0.92)


@pytest.mark.parametrize(
    "odd", [None, 3, 0.5, True, [], {}, [1], {"a": {"b": [1, None]}}, math.nan, "a\nb | c", {1: 2}, ["x", 3]]
)
def test_a_card_of_any_form_has_a_page(odd):
    keys = [*card.TEXTS, "dataset", "performance", "results", "model", "weights", "training", "data", "task"]
    text = page_of(dict.fromkeys([*keys, "more", "name", "provenance", "sparsity"], odd), loss=odd)
    ModelCard(text)
    assert "# sentiment v1.0.0" in text
