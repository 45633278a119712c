"""A wrong command line is refused before anything is measured, and before torch is imported."""

import json
import os
import subprocess
import sys

import pytest

from tests.commands.releases.promote_cases import TEXTS
from tests.conftest import ROOT
from tests.faults.fault_cases import mounted

# Arguments of `peakpoint`, and the expected message. {run} is a run, {file} its newest checkpoint.
REFUSED = [
    ("promote {run} --version 1.0.0", "The model card lacks description, intended_use, limitations,"),
    ("promote {file} --version 1.0.0", "The model card lacks description, intended_use, limitations,"),
    ("promote {run} --version 1.0 --card card.yaml", "'1.0' is not a semantic version"),
    ("promote {run} --version v1.0.0 --card card.yaml", "is not a semantic version"),
    ("promote {run} --version ../1.0.0 --card card.yaml", "is not a semantic version"),
    ("promote {run} --version 1.0.0 --card nowhere.yaml", "nowhere.yaml"),
    ("promote {run} --version 1.0.0 --card card.yaml --rules nowhere.yaml", "nowhere.yaml"),
    ("promote {run} --version 1.0.0 --card card.yaml --rules wrong.yaml", "wrong.yaml"),
    ("promote {run} --version 1.0.0 --card card.yaml --alias hero", "'hero' is not an alias"),
    (
        "promote {run} --version 1.0.0 --card card.yaml --set dtype=float8",
        "dtype=float8 is not a choice:",
    ),
    (
        "promote {run} --version 1.0.0 --card card.yaml --set format=onnx",
        "; there are: pt, safetensors.",
    ),
    (
        "promote {run} --version 1.0.0 --card card.yaml --set format=safetensors --set compress=true",
        "cannot be compressed",
    ),
    ("promote {run} --version 1.0.0 --card card.yaml --set dtyp=float16", "did you mean dtype?"),
    ("promote {run} --version 1.0.0 --card card.yaml --set sign=nokey", "nokey does not exist: sign= takes"),
    ("promote {run} --version 1.0.0 --card card.yaml --data-root nowhere", "nowhere does not exist."),
    (
        "promote {run} --version 1.0.0 --card card.yaml --into card.yaml",
        "card.yaml is a file: name a folder.",
    ),
    ("promote nowhere --version 1.0.0 --card card.yaml", "nowhere does not exist."),
    ("select {run} --rules nowhere.yaml", "nowhere.yaml"),
    ("select {run} --champion-of nowhere", "nowhere does not exist."),
    ("select nowhere", "nowhere does not exist."),
    ("check {run} --alias hero", "hero"),
    ("check {run} --threshold -1", "--threshold: -1 is out of range"),
    ("check {run} --threshold nan", "--threshold: nan is out of range"),
    ("check {run} --data-root nowhere", "nowhere does not exist."),
    ("check {run} --other-data nowhere.npz", "nowhere.npz does not exist."),
    ("compare {run}", "Name 2 to 26 networks"),
    ("compare {run} nowhere", "nowhere does not exist."),
    ("compare {run} {run} --threads 0", "--threads: 0 is out of range"),
    ("compare {run} {run} --batch 0", "--batch: 0 is out of range: it must be between 1 and 65,536"),
    ("compare {run} {run} --batch 99999999999", "--batch: 99999999999 is out of range"),
    ("compare {run} {run} --rounds 1", "--rounds: 1 is out of range"),
    ("prove-resume {run} --steps 0", "--steps: 0 is out of range"),
    ("export {run} out.onnx --batch 99999999999", "99999999999 is out of range"),
    ("push {run} s3://bucket/runs --timeout nan", "--timeout: nan is out of range"),
    ("push {run} s3://bucket/runs --timeout -1", "--timeout: -1 is out of range"),
    ("push {run} s3://bucket/runs --timeout x", "--timeout: 'x' is not a number"),
    ("export {run} card.yaml", "card.yaml exists: choose another name."),
    ("export {run} out.pt", "out.pt must end in .onnx"),
    ("export {run} nowhere/out.onnx", "nowhere is not a directory: make it first."),
    ("export nowhere out.onnx", "nowhere does not exist."),
    ("export {run} out.pt2 --format torch --opset 17", "torch.export has no opset"),
    ("unpack {file} nowhere/out.pt", "nowhere is not a directory: make it first."),
    ("unpack {file} card.yaml", "card.yaml exists: choose another name."),
    ("unpack nowhere.pt out.pt", "nowhere.pt is no file"),
    ("rollback {run} --alias hero", "hero"),
    ("rollback {run} --to 9.9.9", "has no release 9.9.9"),
    ("alias {run} champion 9.9.9", "9.9.9"),
    ("pull s3://bucket/runs card.yaml", "card.yaml is a file: name a folder."),
    ("verify {run} --allowed-signers nowhere", "nowhere"),
]

ASK = """
import contextlib, io, json, sys
from peakpoint.commands.dispatch import main

answers = []
for arguments in json.loads(sys.stdin.read()):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    answers.append([code, err.getvalue(), "torch" in sys.modules])
print(json.dumps(answers))
"""


def test_no_refusal_waits_for_torch(pruned_run, tmp_path):
    """All in one process, which never imports it."""

    (tmp_path / "card.yaml").write_text(TEXTS)
    (tmp_path / "wrong.yaml").write_text("require: 5\n")
    file = pruned_run / "checkpoints" / "training" / "latest.pt"
    before = sorted(p.name for p in tmp_path.iterdir())
    commands = [line.format(run=pruned_run, file=file.resolve()).split() for line, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps(commands),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for (line, sentence), (code, message, slow) in zip(REFUSED, answers, strict=True):
        assert (code, slow) == (2 if "--help shows" in message else 1, False), (line, message)
        assert message.startswith("error: "), line
        assert sentence in message, line
        assert message.count("\n") == 1, line
    assert sorted(p.name for p in tmp_path.iterdir()) == before


READ_ONLY = [
    ("export {run} {there}/out.onnx", "{there} cannot be written to: choose another folder."),
    ("unpack {file} {there}/out.pt", "{there} cannot be written to: choose another folder."),
    (
        "promote {run} --version 1.0.0 --card {card} --into {there}/prod",
        "{there} cannot be written to: choose another folder.",
    ),
    ("pull s3://nowhere/runs {there}/run", "{there} cannot be written to: choose another folder."),
]


@pytest.mark.parametrize(("line", "sentence"), READ_ONLY, ids=[line.split()[0] for line, _ in READ_ONLY])
def test_a_directory_that_cannot_be_written_to(pruned_run, tmp_path, cli_main, line, sentence):
    (tmp_path / "card.yaml").write_text(TEXTS)
    file = (pruned_run / "checkpoints" / "training" / "latest.pt").resolve()
    with mounted(tmp_path / "locked", "-t tmpfs -o ro tmpfs") as there:
        names = {"run": pruned_run, "file": file, "there": there, "card": tmp_path / "card.yaml"}
        code, _, err = cli_main(*line.format(**names).split())
    assert (code, err) == (1, f"error: {sentence.format(**names)}\n")
