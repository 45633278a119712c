"""Names of files from a template: every name that one makes is that of a file."""

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakpoint.base.errors import CheckpointError
from peakpoint.checkpointing.storage.naming import LONGEST, Template
from tests.checkpointing.checkpoint_cases import ALL
from tests.conftest import one_line

FACTS = {"model": "resnet50", "optimizer": "adamwprune", "data": "cifar100", "seed": 0}
GUIDE = "{model}_{optimizer}_{data}_epoch{epoch}_acc{accuracy:.2f}"


def stem(text, metrics, epoch=63, step=22113, sparsity=0.5):
    return Template(text, FACTS).stem(epoch, step, sparsity, metrics)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GUIDE, "resnet50_adamwprune_cifar100_epoch63_acc0.75"),
        ("{model}-{step:08d}-{sparsity:.2f}", "resnet50-00022113-0.50"),
        ("s{seed}_{accuracy:.1%}", "s0_74.7_"),
        ("top{val/top 5:.3f}", "top0.900"),
        ("{loss}", "nan"),
        ("{f1_score:.2f}_{epoch}", "na_63"),
        ("a/../b{{x}}", "a_.._b_x_"),
    ],
)
def test_what_a_template_makes(text, name):
    assert stem(text, {"accuracy": 0.7468, "val/top 5": 0.9, "loss": math.nan}) == name


def test_without_an_evaluation_what_was_not_measured_is_stated():
    assert stem(GUIDE, {}, sparsity=None) == "resnet50_adamwprune_cifar100_epoch63_accna"
    assert stem("{epoch}_{sparsity:.2f}", {}, sparsity=None) == "63_na"


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("{modle}", r"\{modle\} is not a field; there are: model, optimizer, data, seed, epoch"),
        ("{}", "is not a field"),
        ("{epoch.real}", r"\{epoch.real\} is not a field"),
        ("{metrics[0]}", "is not a field"),
        ("{model!r}", "may have a format"),
        ("{epoch:{step}}", "may have a format"),
        ("{epoch:q}", "Unknown format code"),
        ("{model:.2f}", "Unknown format code"),
        ("{epoch", "expected '}'"),
        ("", "begin with a letter"),
        (".staged-{epoch}", "begin with a letter"),
        ("-{epoch}", "begin with a letter"),
        ("x" * LONGEST, "fewer than"),
        ("x" * 2 * LONGEST, "fewer than"),
        ("{epoch:999999999999}", "may have a format such as"),
        ("{accuracy:.999999999f}", "may have a format such as"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(text, stated):
    with one_line(CheckpointError, match=stated) as refusal:
        Template(text, FACTS).check(["accuracy"])
    assert str(refusal.value).startswith(f"checkpoint.name={text}")


@given(st.text(max_size=40), st.floats(), st.integers(0, 10**9))
def test_whatever_is_accepted_makes_names_of_files(text, value, step):
    template = Template(text, FACTS)
    try:
        template.check(["accuracy"])
    except CheckpointError:
        return
    name = template.stem(1, step, value, {"accuracy": value})
    assert 0 < len(name) <= LONGEST
    assert set(name) <= set(string.ascii_letters + string.digits + "._-")


def test_what_happens_at_one_moment_shares_a_name_and_a_file_in_each_tier(world):
    world = world(**ALL).attempt(name=Template("{model}_e{epoch}_acc{accuracy:.2f}", FACTS))
    world.epoch(0.5, loss=1.0)
    world.epoch(0.6, loss=0.5)
    assert world.files("milestone") == ["resnet50_e1_acc0.50.pt", "resnet50_e2_acc0.60.pt"]
    best = next(m for m in world.kept if m.file == "milestone/resnet50_e2_acc0.60.pt")
    assert set(best.tags) == {"best_accuracy", "best_loss", "top_k"}
    assert (world.root / "milestone" / "best_loss.pt").resolve().name == "resnet50_e2_acc0.60.pt"


def test_names_that_are_the_same_are_numbered(world):
    world = world(**ALL).attempt(name=Template("{model}", FACTS))
    world.epoch(0.5)
    world.epoch(0.6)
    assert world.files("training") == ["resnet50.pt", "resnet50_2.pt"]
