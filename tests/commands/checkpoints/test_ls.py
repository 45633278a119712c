"""ls and show, and what all commands share: their errors, and that they start at once."""

import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import pytest

from peakpoint.base.disk_space import in_words
from peakpoint.checkpointing.storage.store import Store
from peakpoint.commands import dispatch as cli
from tests.checkpointing.checkpoint_cases import damage, saved
from tests.conftest import command, process

METRICS = ["loss", "accuracy", "top5_accuracy", "f1_score"]
KEYS = {
    "file", "tier", "tags", "policies", "reasons", "sequence", "run", "epoch", "global_step", "metrics",
    "sparsity", "bytes", "digest", "created", "git_commit", "format", "root", "verified",
}  # fmt: skip


def test_ls_shows_every_checkpoint_and_why(run, cli_main):
    out = cli_main("ls", run).output()
    for word in ("training", "milestone", "a.pt", "b.pt", "best.pt", "50.00%", "nan", "70.00%", "the [best]"):
        assert word in out
    assert "latest" not in out
    size = (run / "checkpoints" / "training" / "a.pt").stat().st_size
    assert f"3 checkpoints, {in_words(2 * size)} on disk" in out  # the shared bytes count once
    assert cli_main("ls", run / "checkpoints")[1] == out


@pytest.mark.parametrize("verify", [True, False])
def test_ls_as_json(run, cli_main, verify):
    out = cli_main("ls", run, "--json", *["--verify"] * verify).succeeded().out
    found = json.loads(out, parse_constant=pytest.fail)
    assert [m["file"] for m in found] == ["training/a.pt", "training/b.pt", "milestone/best.pt"]
    assert all(set(m) >= KEYS for m in found)
    assert found[0]["metrics"] == {"accuracy": 0.5, "loss": "nan"}
    assert {m["verified"] for m in found} == ({True} if verify else {None})


def test_show_takes_a_file_or_a_pointer(run, cli_main):
    folder = run / "checkpoints" / "training"
    found = json.loads(cli_main("show", folder / "latest.pt", "--json").succeeded().out)
    assert set(found) >= KEYS
    assert (found["file"], found["verified"]) == ("training/b.pt", True)
    assert found["digest"] in cli_main("show", folder / "b.pt").succeeded().out
    assert "the [best]" in cli_main("show", run / "checkpoints" / "milestone" / "best.pt")[1]


def test_damaged_bytes_are_found_and_left_where_they_are(run, cli_main):
    path = run / "checkpoints" / "training" / "a.pt"
    damage(path)
    assert cli_main("ls", run)[0] == 0
    out = cli_main("ls", run, "--verify").failed().out
    assert out.count("damaged: ") == 1
    assert f"{path} does not match the digest" in out
    out = cli_main("ls", run, "--verify", "--json").failed().out
    assert [m["verified"] for m in json.loads(out)] == [False, True, True]
    assert "does not match" in cli_main("show", path).failed().out
    assert json.loads(cli_main("show", path, "--json")[1])["verified"] is False
    assert path.exists()
    assert not (run / "checkpoints" / "quarantine").exists()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_manifest_that_cannot_be_read_is_reported(run, cli_main, options):
    broken = run / "checkpoints" / "training" / "a.json"
    broken.write_text("{")
    _, out, err = cli_main("ls", run, "--verify", *options).failed()
    assert f"damaged: {broken} is not a readable checkpoint manifest" in (err if options else out)
    if options:
        assert [m["file"] for m in json.loads(out)] == ["training/b.pt", "milestone/best.pt"]
    code, out, err = cli_main("show", broken.with_suffix(".pt"))
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {broken} is not a readable")


def test_an_empty_run_says_so(tmp_path, cli_main):
    Store(tmp_path / "checkpoints", "run")
    assert "holds no checkpoint yet" in cli_main("ls", tmp_path).succeeded().out
    assert json.loads(cli_main("ls", tmp_path, "--json")[1]) == []


def test_what_is_not_there_is_one_line_and_exit_code_1(run, cli_main, tmp_path):
    shutil.copy(run / "checkpoints" / "training" / "a.pt", tmp_path / "alone.pt")
    (run / "checkpoints" / "training" / "dangling.pt").symlink_to("nowhere.pt")
    cases = [
        (("ls", tmp_path / "nowhere"), f"{tmp_path / 'nowhere'} does not exist."),
        (("ls", run / "checkpoints" / "training" / "a.pt"), "has no checkpoints"),
        (("show", tmp_path / "nowhere.pt"), "does not exist"),
        (("show", run / "checkpoints" / "training" / "dangling.pt"), "does not exist"),
        (("show", tmp_path / "alone.pt"), "has no manifest beside it"),
        (("show", run), "is a directory: name a file."),
    ]
    for arguments, sentence in cases:
        code, out, err = cli_main(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert sentence in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["zzz"], f"zzz is not a command; there are: {', '.join(sorted(cli.COMMANDS))}."),
        (["lss"], "lss is not a command: did you mean ls?"),
        (["ls"], "RUN is missing; peakpoint ls --help shows what there is."),
        (["ls", "x", "--josn"], "--josn is not an option: did you mean --json?"),
        (["ls", "x", "y"], "y is one too many; peakpoint ls --help shows what there is."),
        (["export", "x", "y", "--format", "onx"], "onx is not a choice of --format: did you mean onnx?"),
        (["compare", "x", "--batch", "b"], "argument --batch: 'b' is not a whole number; "
         "peakpoint compare --help shows what there is."),
        (["show\x1b[2J"], "show\\x1b[2J is not a command: did you mean show?"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line_and_exit_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"


def test_a_tilde_that_no_shell_expanded_is_the_home_directory(run, cli_main, monkeypatch):
    monkeypatch.setenv("HOME", str(run.parent))
    assert cli_main("ls", f"~/{run.name}") == cli_main("ls", run)


@pytest.mark.parametrize(
    "arguments", [["ls", "."], ["show", "checkpoints/training/latest.pt"], ["verify", "."], ["repair", "."]]
)
def test_as_a_program_it_needs_no_torch(run, arguments):
    program = (
        f"import sys, peakpoint.commands.dispatch as m; m.main({arguments}); sys.exit('torch' in sys.modules)"
    )
    done = process("-c", program, cwd=run)
    assert done.returncode == 0


def test_ls_of_a_tree_lists_every_run(run, cli_main):
    Store(run.parent / "sweeps" / "0" / "checkpoints", "other")
    (run.parent / "data" / "training").mkdir(parents=True)  # of another program
    out = cli_main("ls", run.parent).succeeded().out
    assert f" on disk, in {run / 'checkpoints'}" in out
    assert "sweeps/0/checkpoints holds no checkpoint yet" in out
    assert str(run.parent / "data") not in out
    assert {m["root"] for m in json.loads(cli_main("ls", run.parent, "--json")[1])} == {
        str(run / "checkpoints")
    }


@pytest.mark.parametrize("asked", [[], ["--help"], ["-h"]])
def test_alone_it_says_what_there_is(asked, capsys):
    assert cli.main(asked) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name, text in (
        ("ls", "a table of"),
        ("prove-resume", "kill and resume"),
        ("train", "train and prune"),
    ):
        assert f"{name} {text}" in out


def test_it_says_its_own_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"peakpoint {importlib.metadata.version('peakpoint')}\n"


@pytest.mark.parametrize("name", sorted(set(cli.COMMANDS) - {"train"}))
def test_each_command_says_what_it_takes(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: peakpoint {name} [-h] [--json]")


def test_without_a_terminal_every_column_is_whole(finished):
    done = command("ls", str(finished), cwd=finished, module="peakpoint")
    header, _, *rows = done.stdout.partition("milestone\n")[2].partition("\n\n")[0].splitlines()
    assert header.split() == ["file", "epoch", "step", *METRICS, "sparsity", "size", "why"]
    files = {p.name for p in (finished / "checkpoints" / "milestone").glob("*.pt") if not p.is_symlink()}
    assert {row.split()[0] for row in rows} == files
    assert "…" not in done.stdout


@pytest.mark.parametrize("columns", [40, 80, 100, 160])
def test_on_a_terminal_of_any_width_every_word_and_number_is_there(run, on_a_terminal, columns):
    reason = "accuracy 0.3993 beats 0.3924 of epoch 1; loss 1.9273 beats 2.0355 of epoch 1"
    name = "milestone/resnet20_adamwprune_digits_epoch3_acc0.40.pt"
    saved(Store(run / "checkpoints", "run"), name, reasons=(reason,), metrics={"accuracy": 0.4, "loss": 1.9})
    message = on_a_terminal(columns, "ls", run).partition("milestone")[2]
    for word in (Path(name).name, "accuracy", "loss", "40.00%", "1.9000", *reason.split()):
        assert word in message
    lines = message.splitlines()[:-1]
    assert max(len(line) for line in lines if Path(name).name not in line) <= columns


HOSTILE = "\x1b]0;x\x07\x1b[2J\r\x9b1A\u202e\nforged line"


@pytest.mark.parametrize("columns", [None, 60, 300])
def test_escape_codes_of_a_strangers_run_reach_no_terminal(run, cli_main, on_a_terminal, columns):
    target = Store(run / "checkpoints", "run")
    stranger = saved(target, "training/c.pt", 3.0, reasons=(HOSTILE,), metrics={f"m{HOSTILE}": 0.5})
    path = run / "checkpoints" / stranger.file
    typed = [["ls", run], ["show", path], ["why", path], ["diff", path, path], ["gc", run, "--dry-run"]]
    for words in typed:
        message = on_a_terminal(columns, *words) if columns else "".join(cli_main(*words)[1:])
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", message), words
        assert "\nforged" not in message


def test_a_name_on_the_command_line_is_escaped_in_an_error(cli_main):
    code, out, err = cli_main("ls", f"nowhere{HOSTILE}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: nowhere\\x1b]0;x")
