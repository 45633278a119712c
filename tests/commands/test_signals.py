"""A command that a signal ends leaves nothing behind."""

import os
import signal
import subprocess
import sys

import pytest


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
