"""BatchNorm with one value a channel: one line before the first step."""

import pytest
import torch
from torch import nn

from peakpoint.base.errors import UserError
from peakpoint.models import create
from peakpoint.models.normalisation import single_value
from tests.conftest import rows
from tests.states import differences
from tests.trainer.parts import parts

BASE = """data=digits data.crop_padding=0 epochs=1 max_steps=1 log_every=1 device=cpu threads=1 test=false
    tensorboard=false plot=false hydra.run.dir=run optimizer=sgd checkpoint/policy=[interval]"""


@pytest.mark.parametrize(
    ("options", "layer"),
    [
        (("model=resnet20", "data.image_size=4", "batch_size=1"), "layer3.0.bn1"),
        (("model=resnet20", "data.image_size=4", "batch_size=4", "grad_accumulation=4"), "layer3.0.bn1"),
        (("model=resnet18", "model.stem=imagenet", "batch_size=1"), "layer2.0.bn1"),
    ],
)
def test_one_image_at_a_time_is_refused_before_the_first_step(train, tmp_path, options, layer):
    done = train(*BASE.split(), *options)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert f"BatchNorm {layer} sees one value a channel" in done.err
    assert "batch_size=2" in done.err or "batch_size=8" in done.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("model=resnet20", "data.image_size=4", "batch_size=2"),
        ("model=resnet20", "data.image_size=1", "batch_size=2"),
        ("model=resnet20", "data.image_size=8", "batch_size=1"),
        ("model=lenet5", "data.image_size=12", "batch_size=1"),
    ],
)
def test_what_can_be_trained_is(train, tmp_path, options):
    done = train(*BASE.split(), *options)
    assert done.code == 0, done.err
    assert rows(tmp_path / "run", "train")


@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_nothing(training):
    torch.manual_seed(0)
    options = {"stem": "auto", "dropout": 0.5}
    model = create("resnet20", image_shape=(3, 4, 4), num_classes=4, options=options)
    model.train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    assert single_value(model, (3, 4, 4)) == "layer3.0.bn1"
    assert {m.training for m in model.modules()} == {training}
    assert torch.equal(state, torch.get_rng_state())
    assert differences(before, model.state_dict()) == []
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_network_without_running_statistics_is_looked_at_too():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3, track_running_stats=False))
    assert single_value(model, (3, 2, 2)) == "2"
    assert single_value(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (3, 2, 2)) is None


def test_what_only_shows_at_a_step_is_one_line():
    made = parts("model=resnet20", "optimizer=sgd")
    made.state.model.layer3.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d(64)))
    with pytest.raises(
        UserError, match="has nothing to normalise over: Expected more than 1 spatial element"
    ):
        made.loop.fit(lambda *_: None)
