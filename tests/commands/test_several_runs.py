"""The folder of a sweep in place of one run: the best is named, and promote takes what select chooses."""

import json
import shutil

import pytest

from peakpoint.checkpointing.storage import listing
from tests.commands.releases.promote_cases import TEXTS


@pytest.fixture(scope="module")
def several(pruned_run, whole_run, tmp_path_factory):
    """Two runs in a folder, the second with the better record."""
    folder = tmp_path_factory.mktemp("several")
    for number, run in enumerate((pruned_run, whole_run)):
        shutil.copytree(run, folder / str(number), symlinks=True)
    rows = folder / "1" / "metrics.jsonl"
    better = [json.loads(line) for line in rows.read_text().splitlines()]
    for row in better:
        if row["kind"] == "eval":
            row["metrics"]["accuracy"] = 0.99
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in better))
    return folder


@pytest.mark.parametrize(
    "command", ["check", "ensemble", "show", "why", "gc", "record", "repair", "compare {run}", "diff {run}"]
)
def test_a_command_that_takes_one_run_names_the_best(cli_main, several, pruned_run, command):
    name, *more = (str(pruned_run) if word == "{run}" else word for word in command.split())
    code, out, err = cli_main(name, *more, several)
    assert (code, out) == (1, "")
    best = several / "1"
    assert err == f"error: {several} holds 2 runs, and one is needed: the best by accuracy is {best}.\n"


def test_an_export_names_the_best(cli_main, several, tmp_path):
    done = cli_main("export", several, tmp_path / "net.onnx")
    assert done.err.endswith(f"the best by accuracy is {several / '1'}.\n")


def test_ls_lists_them_all(cli_main, several):
    out = cli_main("ls", several).succeeded().out
    assert all(f"{several / number / 'checkpoints'}" in out for number in "01")


def test_promote_takes_what_select_chooses_and_releases_it_in_its_run(cli_main, several, tmp_path):
    folder = shutil.copytree(several, tmp_path / "sweep", symlinks=True)
    chosen = json.loads(cli_main("select", folder, "--json").out)["winner"]
    card = tmp_path / "card.yaml"
    card.write_text(TEXTS)
    done = cli_main("promote", folder, "--version", "1.0.0", "--card", card, "--json").succeeded()
    found = json.loads(done.out)
    assert found["source"] == chosen
    [release] = [m for number in "01" for m in listing.releases(folder / number / "checkpoints")]
    assert chosen.startswith(found["root"])
    assert found["file"] == release.file
    again = cli_main("promote", folder, "--version", "1.0.0", "--card", card)
    assert again.code == 1
    assert "1.0.0" in again.err
