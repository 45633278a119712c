"""What the tests share: one thread each, and runs small enough for seconds."""

import os

# Before torch starts: several workers on few cores are quickest with a thread each.
os.environ["OMP_NUM_THREADS"] = "1"
# The same tests on every machine: runs take the CPU, unless those of CUDA are asked for (make test-cuda).
if os.environ.get("TEST_CUDA") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import contextlib
import copy
import io
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 (hooks)

pytest_plugins = ["tests.checkpoint_fixtures"]

if TYPE_CHECKING:
    from tests.remotes import S3

ROOT = Path(__file__).resolve().parent.parent

# A shell starts its background jobs with Ctrl-C ignored, and what is ignored a run leaves alone.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# 24 steps: three epochs of 8, with everything in play that a resume must bring back.
TINY = (
    "model=lenet5",
    "model.dropout=0.3",
    "data=synthetic",
    "data.train_size=144",
    "data.test_size=40",
    "data.num_classes=4",
    "data.native_size=12",
    "data.val_fraction=0.1",
    "epochs=3",
    "batch_size=16",
    "log_every=3",
    "pruning.frequency=2",
    "logger=[console]",
    "report=false",
    "threads=1",
    "checkpoint/policy=[interval,best,top_k,sparsity,early_stopping]",
)


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def succeeded(self) -> "Done":
        """Fail unless the exit code is 0; returns it."""
        assert self.code == 0, self.err
        return self

    def failed(self) -> "Done":
        """Fail unless the exit code is 1; returns it."""
        assert self.code == 1, self
        return self

    def output(self) -> str:
        """Return what was printed; fail unless the command ended well and without a word on stderr."""
        assert (self.code, self.err) == (0, "")
        return self.out

    def refusal(self) -> str:
        """Return the one line on stderr; fail unless the command ended with it and exit code 1."""
        assert (self.code, self.err.count("\n")) == (1, 1), self.err
        return self.err


@contextlib.contextmanager
def one_line(kind: type[Exception] | tuple[type[Exception], ...], match: str | None = None) -> Iterator[Any]:
    """Expect an error of this kind in one line that contains a match."""
    with pytest.raises(kind, match=match) as refusal:
        yield refusal
    assert "\n" not in str(refusal.value)


def run_main(*arguments: str) -> Done:
    """train.py's main() with these arguments, in this process."""
    from peakpoint.commands import train

    out, err = io.StringIO(), io.StringIO()
    before, full = sys.argv, os.environ.pop("HYDRA_FULL_ERROR", None)
    handlers = logging.root.handlers[:]  # Hydra adds that of train.log, which would hear of later tests
    sys.argv = ["train.py", *arguments]
    code: Any = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            try:
                train.main()
            except SystemExit as end:
                code = end.code
    finally:
        sys.argv = before
        logging.root.handlers[:] = handlers
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if full is not None:
            os.environ["HYDRA_FULL_ERROR"] = full
    if isinstance(code, str):  # what sys.exit("...") prints
        err.write(code + "\n")
        code = 1
    return Done(code or 0, out.getvalue(), err.getvalue())


def complete_run(run: Path, *arguments: str) -> Path:
    """A run of train.py in this directory, which has ended well; returns the directory."""
    run_main(*arguments, f"hydra.run.dir={run}").succeeded()
    return run


class Screen(io.StringIO):
    """Return what a terminal of that many columns would show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
        super().__init__()
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm-256color", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)

    def isatty(self) -> bool:
        return True


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run train.py in an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)
    return run_main


@pytest.fixture
def own_components(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered within the test is forgotten, by Hydra's store of choices too."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    from peakpoint.base import registry
    from peakpoint.trainer.config import check  # noqa: F401 (registers ours before)

    kept = {kind: dict(components) for kind, components in registry._COMPONENTS.items()}
    monkeypatch.setattr(registry, "_COMPONENTS", kept)
    Plugins.instance()  # stores Hydra's own once in a process
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 24 steps that kept a checkpoint of every step."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return complete_run(run, *TINY, "checkpoint.interval_steps=1", "checkpoint.keep_last=100")


@pytest.fixture(scope="session")
def pruned_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 24 steps that was pruned to 0.7 on the way; not to be changed."""
    run = tmp_path_factory.mktemp("pruned") / "run"
    pruning = ("optimizer=adamwprune", "pruning=state", "pruning.target=0.7")
    return complete_run(run, *TINY, *pruning, "checkpoint.interval_steps=8")


def command(*arguments: str, cwd: Path, module: str | None = None) -> subprocess.CompletedProcess[str]:
    """A real process: train.py, or `python -m module`."""
    program = (ROOT / "train.py",) if module is None else ("-m", module)
    return process(*program, *arguments, cwd=cwd)


def process(
    *arguments: Any, cwd: Path | None = None, under: Sequence[str] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """A process of Python with these arguments, in which Peakpoint can be imported; `under` is its tracer."""
    return subprocess.run(
        [*under, sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def rows(run: Path, *kinds: str) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl of these kinds, without what measures time."""
    timing = {"images_per_second", "stall_s", "total_s", "seconds"}
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in timing} for row in found if row["kind"] in kinds]


def status(run: Path) -> dict[str, Any]:
    """A run's status.json."""
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """A real S3 API on the loopback."""
    from tests.remotes import moto

    with moto() as address:
        yield address


@pytest.fixture
def s3(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator["S3"]:
    """A bucket of its own behind a proxy, which s3:// URLs mean in this process and in those it starts."""
    from tests.remotes import KEYS, bucket

    with bucket(s3_server) as made:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": made.proxy.url}.items():
            monkeypatch.setenv(name, value)
        yield made
