"""What is printed: escaped, whole, and never a reason for a program to end."""

import contextlib
import io
import os
import subprocess
import sys

import pytest

from peakpoint.base.terminal import Console, escaped, say_error, steady_output
from tests.conftest import ROOT, Screen

HOSTILE = "a\x1b[31m\x9b2J\x07\r\n\x7f\u202egpj\u2066\udcff"
SEEN = "a\\x1b[31m\\x9b2J\\x07\\r\\n\\x7f\\u202egpj\\u2066\\udcff"


def test_control_characters_are_shown_as_people_type_them():
    assert escaped(HOSTILE) == SEEN
    assert escaped(SEEN) == SEEN
    assert escaped("größer, 日本, 🙂 [b] :x: \\x") == "größer, 日本, 🙂 [b] :x: \\x"
    assert escaped("a\tb\n\x1b", keep="\n\t") == "a\tb\n\\x1b"


@pytest.mark.parametrize("columns", [None, 30, 200])
def test_nothing_reaches_a_reader_raw(monkeypatch, columns):
    file = Screen(monkeypatch, columns) if columns else io.StringIO()
    console = Console(file=file)
    console.say(f"{HOSTILE} [bold]x[/bold] :fire:")
    console.table(["name", "value", HOSTILE], [[HOSTILE, 1.5, HOSTILE]], title=HOSTILE, words=[HOSTILE])
    console.print(HOSTILE)
    text = file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert escaped(text, keep="\n") == text
    assert text.startswith(f"{SEEN} [bold]x[/bold] :fire:")
    assert "\x1b" not in text


def test_an_error_is_one_line(capsys):
    say_error("there is no\n\x1b[2Jfile")
    assert capsys.readouterr().err == "error: there is no\\n\\x1b[2Jfile\n"


@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "40"}, {"FORCE_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_a_terminal_a_table_is_as_wide_as_it_is(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    file = io.StringIO()
    Console(file=file).table(["file", "value", "why"], [["f" * 300, 0.123456789, "w " * 200]], words=["why"])
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[2].split() == ["f" * 300, "0.123456789", *["w"] * 200]


def test_a_reader_of_ascii_sees_a_rule(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as file:
        Console(file=file).table(["name"], [["ab"]])
    assert (tmp_path / "out").read_text().split() == ["name", "----", "ab"]


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 120])
def test_a_narrow_terminal_loses_nothing(monkeypatch, columns):
    file = Screen(monkeypatch, columns)
    row = ["milestone/best.pt", 12, 0.875, "accuracy 0.8750 beats 0.8125 of epoch 3 and of all before"]
    Console(file=file).table(["file", "epoch", "accuracy", "why"], [row, row], words=["why"])
    message = file.getvalue()
    for word in " ".join(map(str, row)).split():
        assert message.count(word) >= 2
    assert "…" not in message
    assert all(len(line.rstrip()) <= columns for line in message.splitlines() if "\x1b" not in line)


PROGRAM = """
import logging, sys
from peakpoint.base.terminal import Console, say_error, steady_output
with steady_output():
    logging.basicConfig(stream=sys.stdout)
    console = Console()
    for number in range(1000):
        print("printed", number, "\\udcff \\u20ac")
        console.say("stated")
        console.table(["a"], [[number]])
        logging.warning("logged")
        say_error("reported")
    open(sys.argv[1], "w").write("whole")
    sys.exit(7)
"""


@pytest.mark.parametrize(
    "shell",
    [
        "{} | head -3",
        "{} 2>&1 | head -3",
        "{} | true",
        "{} >/dev/full",
        "{} >/dev/full 2>&1",
        "{} >&-",
        "{} >&- 2>&-",
        "{} 2>&- | head -3",
        "PYTHONIOENCODING=ascii {} >/dev/null",
        "PYTHONUNBUFFERED=1 {} | head -3",
    ],
)
def test_whatever_becomes_of_the_output_the_program_goes_on(tmp_path, shell):
    (tmp_path / "program.py").write_text(PROGRAM)
    program = f"{sys.executable} program.py done"
    done = subprocess.run(
        ["bash", "-c", f"{shell.format(program)}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        errors="replace",
        check=False,
        timeout=60,
    )
    assert done.returncode == 7, done.stderr
    assert (tmp_path / "done").read_text() == "whole"
    assert set(done.stderr.splitlines()) <= {"error: reported"}


def test_the_streams_are_as_they_were_afterwards(capsys):
    before = sys.stdout, sys.stderr
    with contextlib.suppress(KeyError), steady_output():
        print("printed")
        raise KeyError
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "printed\n"


def test_a_closed_stream_is_passed_over(tmp_path):
    with (tmp_path / "file").open("w") as file:
        console = Console(file=file)
    console.say("stated")
    console.table(["a"], [[1]])
