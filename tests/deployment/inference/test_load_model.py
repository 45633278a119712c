"""load_model: every kind of checkpoint in a process of its own, with nothing but a path."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from peakpoint import CheckpointError, CheckpointManager, load_model, models
from peakpoint.base.registry import register
from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import aliases, listing
from peakpoint.checkpointing.storage.store import Store
from peakpoint.deployment.inference import network
from peakpoint.deployment.release import release
from tests.checkpointing.checkpoint_cases import manifest
from tests.conftest import ROOT, TINY, complete_run, one_line
from tests.states import differences

ALONE = """
import json, sys
from peakpoint import load_model
found = {}
for path in sys.argv[1:]:
    network = load_model(path)
    kinds = {str(p.dtype) for p in network.parameters()}
    sums = {k: v.double().sum().item() for k, v in network.state_dict().items()}
    found[path] = [network.training, sorted(kinds), sums]
print(json.dumps(found))
"""


def output(code, *arguments):
    """Return the output of another process."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=120, check=True).stdout


FORMS = [
    ("pt", "float32", True),
    ("pt", "float16", False),
    ("safetensors", "float32", False),
    ("safetensors", "bfloat16", False),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a run that packs zeros, one that does not, and releases of it; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, compress in (("plain", "false"), ("packed", "true")):
        complete_run(folder / name, *TINY, f"checkpoint.compress={compress}")
    root = folder / "released"
    with_weights = load_model(folder / "plain")
    description = network.describe(folder / "plain")
    manager = CheckpointManager(root)
    for version in ("1.0.0", "1.1.0"):
        manager.save_production_checkpoint(
            with_weights, version=version, config=description.config(), metrics={}, model_card={}
        )
        with torch.no_grad():
            next(with_weights.parameters()).add_(1)
    manager.close()
    for form, dtype, compress in FORMS:
        kind = release.Form(format=form, dtype=dtype, compress=compress)
        made = release.of(
            *network.resolve(folder / "plain"), version="2.0.0", form=kind, reason="in another form"
        )
        release.write(folder / f"{form}-{dtype}-{compress}", made)
    return folder


def sums(file):
    """Return the sums of the weights in a file, read without the library's own network."""
    saved = load_file(file) if file.suffix == ".safetensors" else serialize.load(file)["model_state_dict"]
    return {k: v.float().double().sum().item() for k, v in saved.items()}


def test_every_kind_of_path_alone(runs):
    plain, packed = (runs / name / "checkpoints" for name in ("plain", "packed"))
    newest = listing.manifests(plain)[-1]
    last = [m for m in listing.manifests(packed) if m.tier == "training"][-1]
    best = [m for m in listing.manifests(plain) if "best_accuracy" in m.tags][-1]
    chosen = network.best(plain)
    root = runs / "released"
    released = {version: root / m.file for version, m in listing.by_version(root).items()}
    expected = {
        plain / newest.file: plain / newest.file,
        packed / last.file: packed / last.file,
        packed / "training" / "latest.pt": packed / last.file,
        plain / "milestone" / "best_accuracy.pt": plain / best.file,
        runs / "plain": plain / chosen.file,
        plain: plain / chosen.file,
        released["1.0.0"]: released["1.0.0"],
        root / "production" / "latest.pt": released["1.1.0"],
        root: released["1.1.0"],
    }
    for form, dtype, compress in FORMS:
        folder = runs / f"{form}-{dtype}-{compress}"
        file = folder / f"production/lenet5_v2.0.0.{form}"
        expected |= {folder: file, file: file, file.with_stem("latest"): file}
    found = json.loads(output(ALONE, *expected))
    assert found == {str(path): [False, ["torch.float32"], sums(file)] for path, file in expected.items()}


def test_images_are_fed_as_the_description_says():
    images = torch.tensor([[[[0, 255], [255, 0]], [[51, 102], [204, 153]]]], dtype=torch.uint8)
    description = network.Description(
        name="lenet5", options={}, image_shape=(2, 2, 2), classes=("a",), mean=(0.5, 0.25), std=(0.5, 0.2)
    )
    fed = network.prepare(images, description)
    expected = torch.tensor([[[[-1.0, 1.0], [-0.6, 0.6]], [[3.75, -1.25], [0.75, 1.75]]]])
    assert (fed.dtype, fed.is_contiguous()) == (torch.float32, True)
    torch.testing.assert_close(fed, expected)
    larger = network.prepare(images, replace(description, image_shape=(2, 4, 4)))
    torch.testing.assert_close(larger[:, :, ::3, ::3], expected)  # the corners, at any size


def test_a_run_with_a_champion_means_it(runs, tmp_path):
    root = shutil.copytree(runs / "released", tmp_path / "released")
    files = {version: root / m.file for version, m in listing.by_version(root).items()}
    assert not differences(load_model(root).state_dict(), load_model(files["1.1.0"]).state_dict())
    aliases.assign(root, "champion", "1.0.0", "as a test")
    assert not differences(load_model(root).state_dict(), load_model(files["1.0.0"]).state_dict())


def test_the_global_generators_are_left_alone(runs):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_model(runs / "plain")
    assert torch.equal(before, torch.get_rng_state())


CONFIG = {
    "model": {"name": "lenet5", "options": {"dropout": 0.0}},
    "input": {"shape": [3, 12, 12], "mean": [0.5, 0.5, 0.5], "std": [1.0, 1.0, 1.0]},
    "output": {"classes": ["a", "b"]},
}


def put(nested, path, value):
    """Change what a dotted path names in nested dicts."""
    *folders, last = path.split(".")
    for folder in folders:
        nested = nested[folder]
    nested[last] = value


def changed(path, value):
    config = json.loads(json.dumps(CONFIG))
    put(config, path, value)
    return config


def released(tmp_path, config, state=None):
    """Return a release whose manifest vouches for whatever somebody put into it."""
    if state is None:
        weights = models.create("lenet5", image_shape=(3, 12, 12), num_classes=2, options={"dropout": 0.0})
        state = {"model_state_dict": dict(weights.state_dict())}
    target = Store(tmp_path / "checkpoints", "run")
    (target.root / "production").mkdir(parents=True)
    made = manifest("production/lenet5_v1.0.0.pt", tags=("v1.0.0",), config=config)
    return target.path(target.save([made], lambda f: serialize.dump(serialize.snapshot(state), f))[0])


def refusal(path):
    with one_line(CheckpointError) as refused:
        load_model(path)
    return str(refused.value)


def test_the_untouched_config_is_loaded(tmp_path):
    assert isinstance(load_model(released(tmp_path, CONFIG)), nn.Module)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("model.name", "lenet6", "no model named lenet6: did you mean lenet5?"),
        ("model.name", "os.system", "no model named os.system"),
        ("model.options", {"dropout": 0.0, "depth": 3}, "has no option depth"),
        ("model.options", {}, "needs its option dropout"),
        ("model.options", {"dropout": "much"}, "cannot be rebuilt"),
        ("model.options", {"dropout": [1]}, "cannot be rebuilt"),
        ("model.options", "dropout", "does not record its network"),
        ("model.options", {"dropout": 7.0}, "model.dropout=7.0 is out of range: it must be between 0 and 1"),
        ("input.shape", [3, 12], "does not record its network"),
        ("input.shape", [3, -12, 12], "no network takes images of 3 x -12 x 12"),
        ("input.shape", [3, 10**6, 10**6], "no network takes images of 3 x 1000000 x 1000000"),
        ("input.shape", [3, math.inf, 12], "does not record its network"),
        ("input.shape", [1, 12, 12], "a mean and std for each channel"),
        ("input.shape", [3, 4000, 4000], "fc1.weight is (120, 16) in the file"),
        ("input.mean", None, "does not record its network"),
        ("input.std", [0.0, 1.0, 1.0], "std positive"),
        ("input.std", [math.nan, 1.0, 1.0], "must be finite"),
        ("output.classes", [], "no classes"),
        ("output.classes", [str(i) for i in range(10**5)], "fc3.weight is (2, 84) in the file"),
        ("output", None, "does not record its network"),
    ],
)
def test_a_config_that_lies_is_one_line(tmp_path, path, value, words):
    assert words in refusal(released(tmp_path, changed(path, value)))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({}, "has no model_state_dict"),
        ({"model_state_dict": [1, 2]}, "has no model_state_dict"),
        ({"model_state_dict": {}}, "conv1.weight is missing"),
        ({"model_state_dict": {"conv1.weight": "heavy"}}, "conv1.weight is missing"),
    ],
)
def test_contents_that_are_no_network_are_one_line(tmp_path, state, words):
    assert words in refusal(released(tmp_path, CONFIG, state))


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("config.checkpoint.monitor", torch.zeros(2, 2), "does not say which checkpoint is its best"),
        ("config.checkpoint.monitor.metric", "beauty", "holds no best beauty yet"),
        ("config.pruning.target", math.nan, "does not say which checkpoint is its best"),
        ("config.pruning.target", [0.7], "does not say which checkpoint is its best"),
        ("config", torch.zeros(2, 2), "does not say which checkpoint is its best"),
        ("config.model", torch.zeros(2, 2), "does not record its network"),
        ("metadata", "none", "does not record its network"),
        ("metadata.image_shape", [3, 12], "does not record its network"),
    ],
)
def test_a_run_whose_newest_state_lies_is_one_line(runs, tmp_path, path, value, words):
    root = runs / "plain" / "checkpoints"
    chosen = network.best(root)
    state = serialize.load(root / chosen.file)
    put(state, path, value)
    target = Store(tmp_path, "run")
    (tmp_path / "milestone").mkdir(exist_ok=True)
    made = manifest("milestone/a.pt", tags=chosen.tags, metrics=chosen.metrics)
    target.save([made], lambda f: serialize.dump(serialize.snapshot(state), f))
    assert words in refusal(tmp_path)


def test_what_a_file_asks_for_is_never_allocated(tmp_path):
    """4000 x 4000 pixels would be 7.6 GB of LeNet-5's first dense layer."""
    file = released(tmp_path, changed("input.shape", [3, 4000, 4000]))
    peak = "int([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1]) * 1024"
    code = f"""
import sys
from peakpoint import CheckpointError, load_model
from peakpoint.deployment.inference import network
before = {peak}
try:
    load_model(sys.argv[1])
except CheckpointError:
    print({peak} - before)
"""
    assert int(output(code, file)) < 200_000_000


def test_a_network_that_reads_its_own_tensors_is_built_all_the_same(tmp_path, own_components):
    def build(*, image_shape, num_classes):
        scale = torch.linspace(0.5, 1.0, 3)[0].item()  # torch's meta device has no values to read
        return nn.Sequential(nn.Flatten(), nn.Linear(432, num_classes), nn.Dropout(scale))

    register("model", "own")(build)
    mine = build(image_shape=(3, 12, 12), num_classes=2)
    config = changed("model", {"name": "own", "options": {}})
    file = released(tmp_path, config, {"model_state_dict": dict(mine.state_dict())})
    assert not differences(load_model(file).state_dict(), mine.state_dict())
