"""The script that breaks the code on purpose: its verdicts."""

from benchmarks.mutation import KILLED, LIVED, ROOT, WRONG, Mutant, judge

TESTS = ("tests/optimizers/test_sparsity.py",)
LINE = '"cubic": lambda p: 1 - (1 - p) ** 3,'


def test_a_mutant_is_killed_lives_or_has_no_verdict():
    file = "optimizers/sparsity.py"
    mutants = [
        Mutant(file, LINE, LINE.replace("3", "2"), TESTS),
        Mutant(file, LINE, LINE.replace("lambda p", "lambda q").replace("- p)", "- q)"), TESTS),
        Mutant(file, "a text that is not there", "", TESTS),
        Mutant(file, LINE, "", ("tests/no_such_file.py",)),
    ]
    assert judge(mutants, jobs=1) == [KILLED, LIVED, WRONG, WRONG]
    assert LINE in (ROOT / file).read_text(), "the working tree itself is left alone"
