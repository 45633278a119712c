"""A command that a signal ends leaves nothing behind."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT, process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_proof_that_is_ended_removes_its_folder(tmp_path, number):
    command = [sys.executable, "-m", "peakpoint", "prove-resume", "data=synthetic", "model=lenet5"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=env) as proof:
        assert proof.stderr is not None
        proof.stderr.readline()  # the first of its runs began
        assert list(tmp_path.glob("prove-resume-*"))
        proof.send_signal(number)
        assert proof.wait(30) == 128 + number
    assert not list(tmp_path.glob("prove-resume-*"))


AT_IMPORT = """
import os, runpy, signal, sys
class Sends:
    def find_spec(self, name, *_):
        if name == "{name}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Sends())
runpy.run_{how}({program!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("how", "program", "name", "arguments"),
    [
        ("module", "peakpoint", "peakpoint.base.registry", ["ls", "."]),
        ("module", "peakpoint", "peakpoint.trainer.signals", ["train"]),
        ("path", str(ROOT / "train.py"), "peakpoint.trainer.signals", []),
    ],
)
def test_a_ctrl_c_among_the_first_imports_is_no_traceback(tmp_path, how, program, name, arguments):
    code = AT_IMPORT.format(name=name, how=how, program=program)
    done = process("-c", code, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "")
