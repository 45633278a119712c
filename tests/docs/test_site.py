"""The documentation site is built from docs/, README.md and the docstrings, without a warning."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-d", tmp_path / "doctrees", "docs", tmp_path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "api.html").read_text()
    assert "peakpoint.CheckpointManager.save_milestone_checkpoint" in api
    assert "peakpoint.resume_training" in api
