"""The built wheel, in an environment of its own and a project whose folders have the names of ours."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from zipfile import ZipFile

import pytest

from tests.conftest import ROOT, TINY

pytestmark = pytest.mark.slow

THEIRS = ("models", "trainer", "optimizers", "checkpointing", "deployment", "conf", "tests")
"""Packages of a user's project; its train.py is theirs as well."""

NETWORK = """
from dataclasses import dataclass
import models  # the user's
from torch import nn
from peakpoint import register
from peakpoint.models import Model

@register("model", "mine")
@dataclass(kw_only=True)
class Mine(Model):
    width: int = 4

    def build(self, image_shape, num_classes):
        assert models.WHOSE == "the user's"
        return nn.Sequential(
            nn.Conv2d(image_shape[0], self.width, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(self.width, num_classes),
        )
"""

LIBRARY = """
import sys, models, trainer, optimizers, checkpointing, conf, train, my_network
from pathlib import Path
import peakpoint, torch
assert {m.WHOSE for m in (models, trainer, optimizers, checkpointing, conf, train)} == {"the user's"}
assert "site-packages" in peakpoint.__file__, peakpoint.__file__
network = peakpoint.load_model(Path("run"))
assert type(network).__name__ == "Sequential"
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
manager = peakpoint.CheckpointManager("own")
manager.save_training_checkpoint(network, optimizer, epoch=1, step=1)
peakpoint.load_checkpoint(next(Path("own").rglob("training/*.pt")), network)
from peakpoint.models._torchvision import torchvision
torchvision()  # which some builds of torch need help with
from peakpoint.adapters import lightning, transformers
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The interpreter of an environment with the wheel; what it needs comes from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", folder, ROOT], check=True, capture_output=True)
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    target = ["--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run([sys.executable, "-m", "pip", "install", *target], check=True, capture_output=True)
    return python


def test_a_source_distribution_gives_the_same_wheel(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t"]
    for target in ("wheel", "sdist"):
        subprocess.run([*build, target, "-d", tmp_path], cwd=ROOT, check=True, capture_output=True)
    (wheel,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    shutil.unpack_archive(source, tmp_path, filter="data")
    unpacked = tmp_path / source.name.removesuffix(".tar.gz")
    subprocess.run([*build, "wheel", "-d", tmp_path / "of"], cwd=unpacked, check=True, capture_output=True)
    names = set(ZipFile(wheel).namelist())
    assert set(ZipFile(tmp_path / "of" / wheel.name).namelist()) == names
    assert {f"peakpoint/{folder}/__init__.py" for folder in set(THEIRS) - {"conf", "tests"}} < names


@pytest.fixture(scope="module")
def project(installed, tmp_path_factory):
    """A project with a network of its own, and a function that runs Python or a command there."""
    folder = tmp_path_factory.mktemp("project")
    for name in THEIRS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text('WHOSE = "the user\'s"\n')
    (folder / "train.py").write_text('WHOSE = "the user\'s"\n')
    (folder / "my_network.py").write_text(NETWORK)
    path = os.pathsep.join([str(folder), sysconfig.get_path("purelib")])

    def run(*arguments):
        done = subprocess.run(
            [installed, *arguments], cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    model = [o for o in TINY if not o.startswith("model")]
    run("-m", "peakpoint", "train", "plugins=[my_network]", "model=mine", *model, "hydra.run.dir=run")
    return run


def test_the_library_works_beside_packages_of_the_same_names(project):
    project("-c", LIBRARY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "run"),
        ("ls", "run"),
        ("show", "run/checkpoints/training/latest.pt"),
        ("verify", "run"),
        ("repair", "run"),
        ("gc", "run", "--dry-run"),
        ("why", "run/checkpoints/training/latest.pt"),
        ("diff", "run", "run"),
        ("select", "run", "--dry-run"),
        ("compare", "run", "run", "--split", "none", "--rounds", "2", "plugins=[my_network]"),
        ("export", "run", "network.pt2", "--format", "torch", "plugins=[my_network]"),
        ("estimate", "plugins=[my_network]", "model=mine", "data=digits", "data.image_size=16"),
        ("prove-resume", "run", "--steps", "2", "plugins=[my_network]"),
        ("unpack", "run/checkpoints/training/latest.pt", "dense.pt"),
        ("train", "resume=run", "plugins=[my_network]"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_command_works_there(project, arguments):
    project("-m", "peakpoint", *arguments)


def test_a_release_there(project, tmp_path):
    own = "plugins=[my_network]"
    fields = ("description", "intended_use", "limitations", "ethical_considerations", "license")
    texts = [word for field in fields for word in ("--set", f"card.{field}=text")]
    for version in ("1.0.0", "1.0.1"):
        project("-m", "peakpoint", "promote", "run", "--version", version, "--alias", "champion", *texts, own)
    project("-m", "peakpoint", "check", "run", own)
    project("-m", "peakpoint", "rollback", "run")
    assert "1.0.0" in project("-m", "peakpoint", "alias", "run")
    project("-m", "peakpoint", "changelog", "run")
    far, back = f"file://{tmp_path}/far", str(tmp_path / "back")
    project("-m", "peakpoint", "push", "run", far)
    project("-m", "peakpoint", "pull", far, back)
    project("-m", "peakpoint", "verify", back, "--golden", own)
