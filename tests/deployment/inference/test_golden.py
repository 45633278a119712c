"""Golden inputs and outputs: the same on every machine, and whatever makes another network shows."""

import hashlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from peakpoint import CheckpointError
from peakpoint.deployment.inference import golden, network
from peakpoint.deployment.release import release
from tests.checkpointing.publish_cases import DESCRIPTION, small


def rebuilt(seed=0):
    return network.build(DESCRIPTION, small("1.0.0", seed=seed).weights)


def expected(model):
    images = golden.inputs(DESCRIPTION)
    return images, golden.outputs(model, DESCRIPTION, images)


def test_the_inputs_are_these_bytes_whatever_the_generators_are():
    torch.manual_seed(1)
    first = golden.inputs(DESCRIPTION)
    torch.manual_seed(2)
    assert torch.equal(first, golden.inputs(DESCRIPTION))
    assert first.shape == (golden.COUNT, 12, 12, 3)
    assert first.dtype == torch.uint8
    digest = hashlib.sha256(first.numpy().tobytes()).hexdigest()
    assert digest == "8433303ae255f998a109ce85ce1dd5525857dfb8a2634f293b7d90bb3b962d64"
    assert torch.equal(golden.inputs(DESCRIPTION, 3), golden.inputs(DESCRIPTION, 3))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (3, 1, 1)])
def test_any_shape_of_images(shape):
    images = golden.inputs(replace(DESCRIPTION, image_shape=shape), 6)
    assert images.shape == (6, *shape[1:], shape[0])
    assert len({image.numpy().tobytes() for image in images}) == 6


def test_half_of_them_are_coarse():
    rough = [(image[:, 1:] - image[:, :-1]).count_nonzero().item() for image in golden.inputs(DESCRIPTION)]
    assert all(rough[odd] < 0.6 * rough[odd - 1] for odd in (1, 3, 5, 7))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_they_come_back_from_the_release_with_outputs_of_the_weights_as_they_are_loaded(tmp_path, dtype):
    made = small("1.0.0", form=release.Form(format="pt", dtype=dtype, compress=False))
    manifest = release.write(tmp_path, made)
    images, logits = golden.read(tmp_path, manifest)
    assert torch.equal(images, golden.inputs(DESCRIPTION))
    assert (images.dtype, logits.dtype, logits.shape) == (torch.uint8, torch.float32, (golden.COUNT, 4))
    assert torch.equal(golden.outputs(network.load(tmp_path, manifest), DESCRIPTION, images), logits)
    exact = golden.outputs(rebuilt(), DESCRIPTION, images)
    assert torch.equal(exact, logits) == (dtype == "float32")


def test_the_same_network_agrees_and_rounding_is_allowed():
    model = rebuilt()
    agreement = golden.check(model, DESCRIPTION, expected(model))
    assert (agreement.largest, agreement.flipped, agreement.count) == (0.0, 0, golden.COUNT)
    exact = expected(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 1e-5)
    assert golden.check(model, DESCRIPTION, exact).largest > 0


@pytest.mark.parametrize("harm", ["weights", "code", "mean", "training", "nan"])
def test_another_network_is_reported(harm, monkeypatch):
    model, description = rebuilt(), DESCRIPTION
    exact = expected(model)
    if harm == "weights":
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 0.5
    elif harm == "code":
        monkeypatch.setattr(functional, "relu", functional.leaky_relu)
    elif harm == "mean":
        description = replace(DESCRIPTION, mean=(0.4, 0.5, 0.5))
    elif harm == "training":
        model = nn.Sequential(model, nn.Dropout(0.5)).train()
    else:
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"is not the one that was released|NaN or infinite"):
        golden.check(model, description, exact)


def test_an_output_that_is_no_number_is_infinitely_far():
    exact = torch.tensor([[0.5, 1.0, 0.0]])
    agreement = golden.compare(torch.tensor([[0.5, math.nan, 0.0]]), exact)
    assert (agreement.sound, agreement.largest, agreement.flipped) == (False, math.inf, 0)


def test_a_class_that_flips_between_near_equals_is_no_other_network():
    near = torch.tensor([[1.0, 1.0001, 0.0]])
    assert golden.compare(torch.tensor([[1.0001, 1.0, 0.0]]), near).sound
    far = torch.tensor([[1.0, 1.01, 0.0]])
    agreement = golden.compare(torch.tensor([[1.01, 1.0, 0.0]]), far)
    assert (agreement.sound, agreement.flipped) == (False, 1)
    with pytest.raises(CheckpointError, match=r"outputs have shape \(1, 2\), the golden ones \(1, 3\)"):
        golden.compare(torch.zeros(1, 2), near)


def test_a_network_of_other_images_or_classes_is_refused():
    other = replace(DESCRIPTION, image_shape=(3, 16, 16))
    with pytest.raises(CheckpointError, match=r"cannot be run on images of \(8, 3, 16, 16\): "):
        golden.outputs(rebuilt(), other, golden.inputs(other))
    model = nn.Sequential(nn.Flatten(), nn.Linear(12 * 12 * 3, 3))
    with pytest.raises(
        CheckpointError, match=r"output has shape \(8, 3\) instead of \(8, 4\), one value for each"
    ):
        golden.outputs(model, DESCRIPTION, golden.inputs(DESCRIPTION))
