"""Break the code on purpose, one line at a time, and see whether the tests notice.

    python -m benchmarks.mutation                       every list in benchmarks/mutants/
    python -m benchmarks.mutation optimizers --jobs 2   one list

Each mutant replaces one text by another in a copy of the working tree, and the tests that cover it are run.
It is killed when they fail or do not end, and lives when they pass. The exit code is 1 unless all are killed.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import yaml

from benchmarks._harness import ROOT

LISTS = ROOT / "benchmarks" / "mutants"
KILLED, LIVED, WRONG = "killed", "lived", "wrong"
TIMEOUT_S = 600


@dataclass(frozen=True)
class Mutant:
    """`old`, which occurs once in `file`, becomes `new`; `tests` are arguments of pytest."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, tree: Path) -> bool:
        """Edit the file in a copy of the tree; returns False when `old` does not occur exactly once."""
        path = tree / self.file
        text = path.read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            return False
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")
        return True

    def __str__(self) -> str:
        return f"{self.file}: {_short(self.old)} -> {_short(self.new)}"


def _short(text: str) -> str:
    return " ".join(text.split())


def read(path: Path) -> list[Mutant]:
    """Return the mutants of a list: YAML, one mapping of file, old, new and tests for each."""
    return [
        Mutant(str(m["file"]), str(m["old"]), str(m["new"]), tuple(shlex.split(m["tests"])))
        for m in yaml.safe_load(path.read_text(encoding="utf-8"))
    ]


def copy_of(tree: Path, to: Path) -> None:
    """Copy what git tracks, and what it does not ignore, as it is in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=tree, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (tree / name).is_symlink() or (tree / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(tree / name, to / name, follow_symlinks=False)


def verdict(mutant: Mutant, tree: Path) -> str:
    """Run the tests of a mutant in a copy of the tree, which is as it was afterwards."""
    original = (tree / mutant.file).read_bytes()
    if not mutant.apply(tree):
        return WRONG
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=_environment(tree), capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return KILLED
    finally:
        (tree / mutant.file).write_bytes(original)
    # 1: a test failed; 2: a module of tests could not be imported; 4 and 5: no such test.
    return {0: LIVED, 1: KILLED, 2: KILLED}.get(done.returncode, WRONG)


def _environment(tree: Path) -> dict[str, str]:
    # No bytecode: two states of a file may have one size and one second.
    return {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def judge(mutants: Sequence[Mutant], jobs: int) -> list[str]:
    """Return the verdict on each mutant, in order; prints each as it comes."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            tree = Path(name) / str(number)
            tree.mkdir()
            copy_of(ROOT, tree)
            trees.put(tree)

        def one(mutant: Mutant) -> str:
            tree = trees.get()
            try:
                found = verdict(mutant, tree)
            finally:
                trees.put(tree)
            print(f"{found:7} {mutant}", flush=True)
            return found

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, mutants))


def main() -> int:
    """Judge the mutants of the lists that were named, or of all."""
    parser = argparse.ArgumentParser(description="Which mutants the tests kill.")
    parser.add_argument(
        "lists", nargs="*", help=f"of {', '.join(sorted(p.stem for p in LISTS.glob('*.yaml')))}"
    )
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="mutants at a time")
    options = parser.parse_args()
    paths = [LISTS / f"{name}.yaml" for name in options.lists] or sorted(LISTS.glob("*.yaml"))
    if missing := [path for path in paths if not path.is_file()]:
        parser.error(f"there is no list {missing[0].relative_to(ROOT)}")
    mutants = [mutant for path in paths for mutant in read(path)]
    # A shell starts what runs in the background with Ctrl-C ignored, and tests that send it would fail.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    found = judge(mutants, options.jobs)
    killed, wrong = found.count(KILLED), found.count(WRONG)
    share = killed / max(1, len(found) - wrong)
    print(
        f"{killed} of {len(found) - wrong} mutants killed ({share:.0%}); {wrong} not applicable or untested"
    )
    return int(killed < len(found))


if __name__ == "__main__":
    sys.exit(main())
