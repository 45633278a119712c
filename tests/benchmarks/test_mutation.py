"""The script that breaks the code on purpose: its verdicts."""

import json
import signal
import sys

from benchmarks import mutation
from benchmarks.mutation import KILLED, LIVED, ROOT, WRONG, Mutant, judge, main

TESTS = ("tests/optimizers/pruning/test_criteria.py",)
FILE = "optimizers/catalogue/pruning.py"
LINE = "return 1 - (1 - progress) ** 3"
SAME = "return -((1 - progress) ** 3) + 1"


def test_a_mutant_is_killed_lives_or_has_no_verdict():
    mutants = [
        Mutant(FILE, LINE, LINE.replace("3", "2"), TESTS),
        Mutant(FILE, LINE, SAME, TESTS),
        Mutant(FILE, "a text that is not there", "", TESTS),
        Mutant(FILE, LINE, "", ("tests/no_such_file.py",)),
    ]
    assert judge(mutants, jobs=1) == [KILLED, LIVED, WRONG, WRONG]
    assert LINE in (ROOT / FILE).read_text(), "the working tree itself is left alone"


def test_a_test_that_sends_ctrl_c_works_in_the_background_of_a_shell(tmp_path, monkeypatch, capsys):
    test = "os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "test_it.py").write_text(
        "import os, signal, pytest\n\n\ndef test_it():\n"
        f"    with pytest.raises(KeyboardInterrupt):\n        {test}\n"
    )
    one = {"file": FILE, "old": LINE, "new": SAME, "tests": str(tmp_path / "test_it.py")}
    (tmp_path / "one.yaml").write_text(json.dumps([one]))
    monkeypatch.setattr(mutation, "LISTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["mutation", "one"])
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert main() == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().out.startswith("lived ")


def test_every_listed_mutant_changes_one_place_of_today_and_names_tests_that_are_there():
    stale = []
    for listed in sorted(mutation.LISTS.glob("*.yaml")):
        for mutant in mutation.read(listed):
            text = (ROOT / mutant.file).read_text() if (ROOT / mutant.file).is_file() else ""
            files = [word.split("::")[0] for word in mutant.tests if word.endswith(".py") or "::" in word]
            if text.count(mutant.old) != 1 or not all((ROOT / file).is_file() for file in files):
                stale.append(f"{listed.name}: {mutant}")
    assert stale == []
