"""Imports go train.py -> trainer -> {models, optimizers, checkpointing}; never back, never sideways."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = ("models", "optimizers", "checkpointing")
OURS = (*LEAVES, "trainer", "train", "conf", "tests", "benchmarks")
MAY = {"trainer": {"trainer", *LEAVES}, **{leaf: {leaf} for leaf in LEAVES}}
# Places where things are put together, like train.py: the commands that need a run, or a network.
COMMANDS = {
    "checkpointing/evaluating.py": {"checkpointing", "trainer"},
    "checkpointing/network.py": {"checkpointing", "models"},
    "checkpointing/builders.py": {"checkpointing", "models"},
    "checkpointing/adapters/common.py": {"checkpointing", "optimizers"},
    "checkpointing/commands/prove.py": {"checkpointing", "trainer"},
    "checkpointing/commands/witness.py": {"trainer"},
    "checkpointing/commands/promoting.py": {"checkpointing", "optimizers", "trainer"},
    "checkpointing/commands/runrecord.py": {"checkpointing", "trainer"},
    "checkpointing/commands/settings.py": {"checkpointing", "trainer"},
    "checkpointing/commands/estimate.py": {"checkpointing", "trainer", "models", "optimizers"},
}


def imported(path: Path) -> set[str]:
    """The top-level names of our own that a file imports, at its top or late."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module.split(".")[0])
    return found & set(OURS)


@pytest.mark.parametrize("package", MAY)
def test_packages_import_only_what_lies_below_them(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    found = {f.relative_to(ROOT).as_posix(): imported(f) for f in files}
    wrong = {file: names - COMMANDS.get(file, MAY[package]) for file, names in found.items()}
    assert not {file: names for file, names in wrong.items() if names}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("train", "hydra"),
        ("trainer.entry", "torch"),
        ("checkpointing.__main__", "torch"),
        ("checkpointing.commands.transfer", "torch"),
        ("checkpointing.commands.promote", "torch"),
        ("checkpointing.commands.select", "torch"),
        ("checkpointing.commands.check", "torch"),
        ("checkpointing.rollback", "torch"),
        ("trainer.check", "torch"),
        ("models", "torchvision"),
    ],
)
def test_a_module_starts_without_what_is_slow_to_import(module, absent):
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0
