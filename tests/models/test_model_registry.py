import subprocess
import sys

import pytest

from peakpoint import models
from peakpoint.models import ModelRecord, available, create, register

SHAPE = (3, 32, 32)


def test_lists_models_with_a_description():
    assert [record.name for record in available()][:4] == ["resnet50", "resnet18", "resnet20", "lenet5"]
    assert all(record.description for record in available())


def test_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(ValueError, match=r"no model named resnet5\. Did you mean resnet50\?.*lenet5"):
        create("resnet5", image_shape=SHAPE, num_classes=10, options={})


def test_option_that_the_model_lacks():
    with pytest.raises(ValueError, match="lenet5 has no option stem"):
        create("lenet5", image_shape=SHAPE, num_classes=10, options={"dropout": 0.0, "stem": "auto"})


def test_option_that_is_not_given():
    with pytest.raises(ValueError, match="resnet20 needs its option dropout"):
        create("resnet20", image_shape=SHAPE, num_classes=10, options={"stem": "auto"})


def test_a_taken_name_is_refused():
    with pytest.raises(ValueError, match="lenet5 is already registered"):
        register(ModelRecord("lenet5", "another", lambda: None))


@pytest.fixture
def table(monkeypatch):
    """What is registered within is forgotten."""
    monkeypatch.setattr(models.registry, "_RECORDS", dict(models.registry._RECORDS))


@pytest.mark.usefixtures("table")
def test_a_builder_that_is_defined_again_takes_its_own_place():
    """As a cell of a notebook that is run twice."""
    for made in ("first", "second"):

        def flat(*, made=made):
            return made

        register(ModelRecord("flat", "one layer", flat))
    assert create("flat", options={}) == "second"


@pytest.mark.usefixtures("table")
def test_an_option_with_a_default_need_not_be_given():
    register(ModelRecord("flat", "one layer", lambda *, width, bias=True: (width, bias)))
    assert create("flat", options={"width": 3}) == (3, True)
    assert create("flat", options={"width": 3, "bias": False}) == (3, False)
    with pytest.raises(ValueError, match="flat needs its option width; its options: width, bias"):
        create("flat", options={"bias": False})


@pytest.mark.usefixtures("table")
def test_a_model_of_ones_own():
    from torch import nn

    register(
        ModelRecord(
            "flat", "one layer", lambda *, image_shape, num_classes, bias: nn.Linear(4, num_classes, bias)
        )
    )
    net = create("flat", image_shape=(1, 2, 2), num_classes=3, options={"bias": False})
    assert net.out_features == 3
    assert net.bias is None


def test_listing_imports_no_torch():
    code = "import sys; from peakpoint import models; models.available(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
