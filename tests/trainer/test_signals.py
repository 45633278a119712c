"""Signals that end a run: saved, recorded, with the command to go on; or left to their own handler."""

import shlex
import signal

import pytest

from peakpoint.base.files import STAGED_PREFIX
from peakpoint.checkpointing.storage import locate
from peakpoint.trainer.signals import NUMBERS
from tests.conftest import TINY, process, rows, status

NETWORK, POLICY = "model", "checkpoint.policy.signalling"
SENT = (
    *(o for o in TINY if not o.startswith(("model", "pruning", "checkpoint"))),
    "plugins=[tests.trainer.signalling]",
    "model=signalling",
    "optimizer=adamw",
    "checkpoint/policy=[interval,signalling]",
    "checkpoint.interval_steps=5",
    "hydra.run.dir=run",
)


def at(place, number, when, **more):
    """The overrides that send a signal at a moment."""
    values = {"number": int(number), "when": when, **more}
    return [f"{place}.{key}={value}" for key, value in values.items()]


@pytest.fixture(autouse=True)
def _as_they_were():
    before = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    assert {number: signal.getsignal(number) for number in NUMBERS} == before


@pytest.mark.parametrize("number", NUMBERS)
def test_each_signal_ends_a_run_saved_and_its_command_goes_on(train, tmp_path, number):
    done = train(*SENT, *at(POLICY, number, "step"))
    assert done.code == 128 + number, done.err
    assert status(tmp_path / "run") == status(tmp_path / "run") | {
        "state": "interrupted", "signal": number, "step": 11
    }  # fmt: skip
    assert locate.newest_verified(tmp_path / "run" / "checkpoints").manifest.global_step == 11
    (line,) = (each for each in done.out.splitlines() if "to go on: " in each)
    resumed = shlex.split(line.partition("to go on: ")[2])[2:]
    train(*resumed, f"{POLICY}.when=never").succeeded()
    assert status(tmp_path / "run")["state"] == "finished"


@pytest.mark.parametrize(
    ("place", "when", "step"),
    [(NETWORK, "evaluation", 8), (POLICY, "save", None), (POLICY, "test", 24)],
)
def test_a_signal_at_another_moment_is_saved_too(train, tmp_path, place, when, step):
    run = tmp_path / "run"
    done = train(*SENT, *at(place, signal.SIGUSR1, when))
    assert done.code == 138, done.err
    newest = locate.newest_verified(run / "checkpoints").manifest
    assert status(run) == status(run) | {"state": "interrupted", "step": newest.global_step}
    assert newest.global_step == (step or newest.global_step)
    assert rows(run, "test") == []
    assert list((run / "checkpoints").rglob(f"{STAGED_PREFIX}*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_the_first_step_ends_at_once_with_one_line(train, tmp_path, number):
    done = train(*SENT, *at(NETWORK, number, "building"))
    assert (done.code, done.err) == (128 + number, f"error: ended by {signal.Signals(number).name}.\n")
    assert not (tmp_path / "run" / "status.json").exists()


@pytest.mark.parametrize("when", ["swallowed", "replaced"])
def test_a_ctrl_c_that_a_library_caught_ends_the_run_before_its_first_step_all_the_same(
    train, tmp_path, when
):
    done = train(*SENT, *at(NETWORK, signal.SIGINT, when))
    assert (done.code, done.err) == (130, "error: ended by SIGINT.\n")
    assert list(tmp_path.iterdir()) == []


AT_IMPORT = """
import os, signal, sys
class Sends:
    def find_spec(self, name, *_):
        if name == "{name}":
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Sends())
import train
train.main()
"""


@pytest.mark.parametrize(
    ("name", "number", "sentence"),
    [
        ("omegaconf", signal.SIGINT, "Interrupted before the run began; nothing was written."),
        ("hydra", signal.SIGTERM, "Interrupted before the run began; nothing was written."),
        ("torch.nn", signal.SIGINT, "error: ended by SIGINT."),
    ],
)
def test_a_signal_among_the_imports_is_one_line(tmp_path, name, number, sentence):
    code = AT_IMPORT.format(name=name, signal=number.name)
    done = process("-c", code, *TINY, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, sentence + "\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "second", "code"),
    [
        (signal.SIGUSR1, signal.SIGTERM, 138),  # as SLURM does: the first is why
        (signal.SIGUSR1, signal.SIGINT, 130),  # somebody who cannot wait
    ],
)
def test_a_second_signal(train, tmp_path, first, second, code):
    done = train(*SENT, *at(POLICY, first, "step", again=int(second)))
    assert done.code == code
    assert status(tmp_path / "run")["state"] == "interrupted"
    saved = locate.newest_verified(tmp_path / "run" / "checkpoints").manifest.global_step
    assert saved == (11 if code == 138 else 10)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(train, tmp_path, number):
    """As `nohup` has it for SIGHUP, and a shell for SIGINT of what it starts in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        done = train(*SENT, *at(POLICY, number, "step"))
    finally:
        signal.signal(number, before)
    assert done.code == 0, done.err
    assert status(tmp_path / "run")["state"] == "finished"


def test_a_signal_that_somebody_else_handles_is_left_to_him(train, tmp_path):
    """As submitit does to requeue a job."""
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: heard.append(number))
    try:
        done = train(*SENT, *at(POLICY, signal.SIGUSR2, "step"))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (done.code, heard) == (0, [signal.SIGUSR2])


def test_a_signal_ends_a_sweep_with_its_table(train, tmp_path):
    number = signal.SIGUSR1
    dear = [o for o in SENT if not o.startswith("hydra.run.dir")]
    done = train("-m", *dear, *at(POLICY, number, "step"), "seed=1,2", "hydra.sweep.dir=sweep")
    assert done.code == 128 + number
    assert status(tmp_path / "sweep" / "0")["state"] == "interrupted"
    assert not (tmp_path / "sweep" / "1" / "status.json").exists()
    assert "2 of 2 jobs are not finished; to go on: " in done.out.splitlines()[-1]
    assert any(line.split()[:1] == ["0"] and "interrupted" in line for line in done.out.splitlines())
