"""docs/guarantees.md: the tests that show a promise exist."""

import re
import shlex

import pytest

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "guarantees.md").read_text()
COMMANDS = re.findall(r"`((?:pytest )?tests/[^`]*)`", PAGE)


def test_the_page_names_its_tests():
    assert len(COMMANDS) > 70


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_promise_names_is_there(command):
    paths, _, words = command.removeprefix("pytest ").partition(" -k ")
    files = []
    for path in map(ROOT.joinpath, paths.split()):
        assert path.exists()
        files += [path] if path.is_file() else path.rglob("test_*.py")
    names = re.findall(
        r"^ *(?:def|class) ([Tt]est\w+)", "\n".join(f.read_text() for f in files), re.MULTILINE
    )
    wanted = [word for quoted in shlex.split(words) for word in quoted.split(" or ")]
    assert [word for word in wanted if not any(word in name for name in names)] == []
