"""record, cite and diff of two runs: what their records say, also those of strangers."""

import json
import shutil

import pytest


@pytest.fixture
def copied(pruned_run, tmp_path):
    """A copy of a pruned run."""
    return shutil.copytree(pruned_run, tmp_path / "copied", symlinks=True)


def change_record(run, change):
    record = json.loads((run / "run.json").read_text())
    change(record)
    (run / "run.json").write_text(json.dumps(record))


def test_a_record_in_words_and_as_json(cli_main, pruned_run):
    out = cli_main("record", pruned_run).succeeded().out
    derived = "early_stopping.from_step 19"
    for words in ("finished", "pruning.target=0.7", "seed", "name synthetic", "epoch 3, step 24", derived):
        assert words in out
    out = cli_main("record", pruned_run, "--json").out
    assert json.loads(out)["end"]["reason"] == "all epochs are done"


def test_two_records_and_the_first_row_that_differs(cli_main, pruned_run, copied):
    out = cli_main("diff", pruned_run, copied).succeeded().out
    assert "All rows of metrics that both have are equal (10 train, 3 eval, 2 test; 3 with digests)." in out
    change_record(copied, lambda record: record["config"].update(epochs=4))
    change_record(copied, lambda record: record["packages"].update(torch="1.0"))
    rows = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    next(row for row in rows if row["kind"] == "eval")["digests"]["batches"] = "blake3:0"
    (copied / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    out = cli_main("diff", pruned_run, copied, "--json").out
    found = json.loads(out)
    assert found["config"] == {"epochs": [3, 4]}
    assert found["circumstances"]["packages.torch"][1] == "1.0"
    assert (found["first"]["step"], found["first"]["what"]) == (8, "eval digests.batches")


def test_what_a_paper_says(cli_main, pruned_run, copied):
    change_record(copied, lambda record: record["config"].update(seed=1))
    out = cli_main("cite", pruned_run, copied).succeeded().out
    assert "lenet5 on synthetic, trained with adamwprune, pruned to 70% of the prunable weights" in out
    assert "n = 2 runs (seeds 0, 1)" in out
    assert "24 steps" in out
    assert "@misc{peakpoint-" in out


def test_a_record_of_a_stranger_is_printed_escaped(cli_main, copied):
    change_record(copied, lambda record: record.update(git_commit="\x1b[31m}", data={"name": ["\x1b]0;x"]}))
    for command in (("record", copied), ("cite", copied), ("diff", copied, copied)):
        assert "\x1b" not in cli_main(*command).output()


@pytest.mark.parametrize("command", ["record", "cite"])
def test_no_run_is_one_line(cli_main, tmp_path, command):
    assert cli_main(command, tmp_path).failed().err.count("\n") == 1
