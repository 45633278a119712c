import pytest

from peakpoint.base import registry
from peakpoint.base.errors import UserError
from peakpoint.base.registry import register
from peakpoint.models import create

SHAPE = (3, 32, 32)


def test_the_models_are_known_by_name():
    assert {"resnet50", "resnet18", "resnet20", "lenet5"} <= registry.table("model").keys()


def test_unknown_name_gets_the_nearest_and_the_list():
    with pytest.raises(ValueError, match=r"no model named resnet5: did you mean resnet50\? .*plugins="):
        create("resnet5", image_shape=SHAPE, num_classes=10, options={})


def test_option_that_the_model_lacks():
    with pytest.raises(ValueError, match="lenet5 has no option stem"):
        create("lenet5", image_shape=SHAPE, num_classes=10, options={"dropout": 0.0, "stem": "auto"})


def test_option_that_is_not_given():
    with pytest.raises(ValueError, match="resnet20 needs its option dropout"):
        create("resnet20", image_shape=SHAPE, num_classes=10, options={"stem": "auto"})


def test_a_taken_name_is_refused():
    with pytest.raises(
        UserError, match=r"The model lenet5 is already registered, by peakpoint\.models\.\S+: "
    ):
        register("model", "lenet5")(lambda: None)


@pytest.mark.usefixtures("own_components")
def test_a_builder_that_is_defined_again_takes_its_own_place():
    """As a cell of a notebook that is run twice."""
    for made in ("first", "second"):

        def flat(*, made=made):
            return made

        register("model", "flat")(flat)
    assert create("flat", options={}) == "second"


@pytest.mark.usefixtures("own_components")
def test_an_option_with_a_default_need_not_be_given():
    register("model", "flat")(lambda *, width, bias=True: (width, bias))
    assert create("flat", options={"width": 3}) == (3, True)
    assert create("flat", options={"width": 3, "bias": False}) == (3, False)
    with pytest.raises(ValueError, match="flat needs its option width; its options: width, bias"):
        create("flat", options={"bias": False})


@pytest.mark.usefixtures("own_components")
def test_a_model_of_ones_own():
    from torch import nn

    register("model", "flat")(lambda *, image_shape, num_classes, bias: nn.Linear(4, num_classes, bias))
    net = create("flat", image_shape=(1, 2, 2), num_classes=3, options={"bias": False})
    assert net.out_features == 3
    assert net.bias is None
