"""docs/release.md: every command, as a reader would type it, and what the page says it prints."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "release.md"
BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
REFUSED = "  # refused"
Step = tuple[str, list[str]]
"""A script, and the lines that it must print."""


def steps(page: str) -> list[Step]:
    """The scripts of the page, each with the lines that follow as its output."""
    found: list[Step] = []
    for kind, text in BLOCK.findall(page):
        if kind == "bash":
            found.append((text, []))
        else:
            found[-1][1].extend(text.splitlines())
    return found


def script(text: str) -> str:
    """A block as bash runs it: a line that is to be refused ends with 1."""
    lines = []
    for line in text.splitlines():
        refused = line.removesuffix(REFUSED)
        lines.append(line if refused == line else f"if {refused}; then exit 99; else test $? = 1; fi")
    return "\n".join(["set -euo pipefail", *lines])


def stated(line: str, out: str) -> bool:
    """Whether `out` has the line; `...` stands for anything in it."""
    pattern = ".*".join(map(re.escape, line.split("...")))
    return re.search(rf"^{pattern}$", out, re.MULTILINE) is not None


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty commands, one after the other
def test_each_command_of_the_page_does_what_it_says(tmp_path, s3):
    for name in ("train.py", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "160"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = PAGE.read_text().replace("s3://models", f"s3://{s3.bucket}").replace("8123", str(port))
    found = steps(page)
    assert len(found) > 10
    for text, expected in found:
        done = subprocess.run(
            ["bash", "-c", script(text)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        assert [line for line in expected if not stated(line, done.stdout)] == [], done.stdout
