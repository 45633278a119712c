"""The pages of commands: each command, as a reader would type it, and what the page says it prints."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = ("release.md", "tutorial.md")
BLOCK = re.compile(r"^```(bash|text|output)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
VARIES = re.compile(r"(\d[\d.]*|\u2500+| +|\.\.\.)")
"""What differs from machine to machine in a block of kind `output`."""
REFUSED = "  # refused"
Step = tuple[str, list[str]]
"""A script, and a pattern of each line that it must print."""


def steps(page: str) -> list[Step]:
    """Return the scripts of the page, each with the lines that follow as its output."""
    found: list[Step] = []
    for kind, text in BLOCK.findall(page):
        if kind == "bash":
            found.append((text, []))
        else:
            found[-1][1].extend(pattern(line, numbers=kind == "text") for line in text.splitlines())
    return found


def script(text: str) -> str:
    """A block as bash runs it: a line that is to be refused ends with 1."""
    lines = []
    for line in text.splitlines():
        refused = line.removesuffix(REFUSED)
        lines.append(line if refused == line else f"if {refused}; then exit 99; else test $? = 1; fi")
    return "\n".join(["set -euo pipefail", *lines])


def pattern(line: str, *, numbers: bool) -> str:
    """Return the pattern of a line: `...` is anything, and without `numbers` each of them is any number."""
    anything = {".": ".*", "\u2500": "\u2500+", " ": " +"}
    if numbers:
        return ".*".join(map(re.escape, line.split("...")))
    parts = VARIES.split(line)  # in turn a text, and what varies
    return "".join(
        anything.get(part[0], r"\d[\d.]*") if at % 2 else re.escape(part) for at, part in enumerate(parts)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty commands, one after the other
@pytest.mark.parametrize("name", PAGES)
def test_each_command_of_the_page_does_what_it_says(name, tmp_path, s3):
    for used in ("train.py", "examples"):
        (tmp_path / used).symlink_to(ROOT / used)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "180"}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    page = (ROOT / "docs" / name).read_text()
    page = page.replace("s3://models", f"s3://{s3.bucket}").replace("8123", str(port))
    found = steps(page)
    assert len(found) > 7
    for text, expected in found:
        done = subprocess.run(
            ["bash", "-c", script(text)],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (text, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        missing = [line for line in expected if not re.search(f"^{line}$", done.stdout, re.MULTILINE)]
        assert missing == [], done.stdout
