"""Imports go down the floors only; what starts quickly imports nothing slow."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT, process

FLOORS = (
    ("base",),
    ("models", "optimizers"),
    ("checkpointing",),
    ("trainer",),
    ("deployment",),
    ("library",),
    ("adapters",),
    ("commands",),
    ("__main__",),
)

"""From the ground up. A module imports from its own package and from lower floors, late imports included."""

LINKED = ("checkpointing", "deployment", "models", "optimizers", "trainer")
"""Folders of the repository that `peakpoint/` links to."""


def modules() -> dict[str, Path]:
    """The dotted name of each module, and its file."""
    found = {}
    for file in [*(ROOT / "peakpoint").glob("*.py")] + [
        file for folder in sum(FLOORS, ()) for file in (ROOT / "peakpoint" / folder).resolve().rglob("*.py")
    ]:
        parts = file.relative_to(ROOT).with_suffix("").parts
        parts = parts if parts[0] == "peakpoint" else ("peakpoint", *parts)
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = modules()


def imported(file: Path) -> set[str]:
    """The modules of ours that a file imports, at its top or late."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    generic = {
        name for name in found if name.split(".")[0] in (*LINKED, "conf", "tests", "benchmarks", "train")
    }
    assert not generic, f"{file}: import it as peakpoint.…, not as {generic}"
    return {name for name in found if name.split(".")[0] == "peakpoint"}


IMPORTS = {name: imported(file) for name, file in MODULES.items()}


def floor(module: str) -> int:
    return next(level for level, names in enumerate(FLOORS) if module.split(".")[1] in names)


def test_imports_go_down_the_floors():
    assert len(MODULES) > 150
    wrong = [
        f"{module} imports {other}"
        for module, others in IMPORTS.items()
        for other in others
        # The public names stand above everything, and are nobody's way in.
        if module != "peakpoint"
        and (
            other == "peakpoint"
            or floor(other) > floor(module)
            or (floor(other) == floor(module) and other.split(".")[1] != module.split(".")[1])
        )
    ]
    assert wrong == []


def test_no_import_comes_back_to_where_it_began():
    packages = {name for name, file in MODULES.items() if file.name == "__init__.py"}
    graph = {module: others - {module} for module, others in IMPORTS.items() if module not in packages}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_has_more_than_a_dozen_modules():
    sizes = Counter(file.parent.relative_to(ROOT) for file in MODULES.values() if file.name != "__init__.py")
    assert {folder: size for folder, size in sizes.items() if size > 12} == {}


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("peakpoint", "torch"),
        ("peakpoint.commands.dispatch", "torch"),
        ("peakpoint.commands.train", "hydra"),
        ("peakpoint.commands.entry", "torch"),
        ("peakpoint.trainer.config.check", "torch"),
        ("peakpoint.checkpointing.policies", "torch"),
        ("peakpoint.deployment.abtest", "torch"),
        ("peakpoint.deployment.release.rollback", "torch"),
        ("peakpoint.models", "torch"),
    ],
)
def test_a_module_starts_without_what_is_slow_to_import(module, absent):
    code = f"import sys, {module}; sys.exit({absent!r} in sys.modules)"
    assert process("-c", code).returncode == 0


def test_the_help_of_every_command_comes_without_torch():
    code = (
        "import sys\n"
        "from peakpoint.commands.dispatch import COMMANDS, _command\n"
        "for name in set(COMMANDS) - {'train'}: _command(name)[0].format_help()\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert process("-c", code).returncode == 0
