"""What is skipped where every test can run is no pass; a CUDA device alone may be missing."""

import shutil
import subprocess

import pytest

from tests.conftest import ROOT, process

SKIPPED = """
import pytest
from tests.skips import HAS_CUDA, NO_CUDA

@pytest.fixture
def disk():
    pytest.skip("mkfs.xfs is not installed")

def test_on_a_disk(disk):
    pass

@pytest.mark.skipif(True, reason="strace is not installed")
def test_traced():
    pass

@pytest.mark.parametrize("reason", [NO_CUDA, HAS_CUDA])
def test_cuda(reason):
    pytest.skip(reason)

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False
"""


@pytest.mark.parametrize(
    ("asked", "code", "counts"),
    [("1", 2, "1 error"), ("1", 1, "2 skipped, 1 xfailed, 2 errors"), ("", 0, "5 skipped, 1 xfailed")],
)
def test_a_skip_fails_where_everything_can_run(tmp_path, asked, code, counts):
    (tmp_path / "conftest.py").write_text("from tests.skips import *\n")
    (tmp_path / "test_some.py").write_text(SKIPPED)
    if code != 1:  # a file that cannot be collected ends everything
        (tmp_path / "test_whole.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    done = process(
        "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path, TEST_ALL=asked
    )
    assert done.returncode == code, done.stdout
    assert counts in done.stdout
    if code == 1:
        for reason in ("mkfs.xfs is not installed", "strace is not installed"):
            assert f"Skipped: {reason}. With TEST_ALL=1 every test must run" in done.stdout


TOOLS = ("mount", "mkfs.ext4", "mkfs.xfs", "eatmydata", "strace", "ssh-keygen", "chromium")


@pytest.mark.parametrize(
    ("user", "missing", "stated"),
    [
        (0, (), "make test, TEST_ALL=1"),
        (
            0,
            ("mkfs.xfs", "eatmydata"),
            "apt-get update -qq\napt-get install -qq -y --no-install-recommends xfsprogs eatmydata\n"
            "make test, TEST_ALL=1",
        ),
        (0, ("apt-get", "eatmydata"), "make test, TEST_ALL="),
        (1000, ("eatmydata",), "make test, TEST_ALL="),
    ],
)
def test_ci_installs_what_the_tests_of_root_need(tmp_path, user, missing, stated):
    """.ci/run with programs that say how they were called."""
    programs = {
        "id": f"echo {user}",
        "apt-get": 'echo "apt-get $*"',
        "make": 'echo "make $*, TEST_ALL=$TEST_ALL"',
    }
    for name, text in {**programs, **dict.fromkeys(TOOLS, ":")}.items():
        if name not in missing:
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    script = (ROOT / ".ci" / "run").read_text().replace(":/usr/sbin:/sbin", "")
    (tmp_path / "ci").mkdir()
    (tmp_path / "ci" / "run").write_text(script)
    done = subprocess.run(
        [str(tmp_path / "bash"), str(tmp_path / "ci" / "run")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, stated), done.stderr
