"""prove-resume: with real processes that are killed and resumed."""

import json
import math
import os

import pytest
import torch

from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.proof import prove as prove_resume
from tests.conftest import ROOT, TINY, process

FORGETFUL = """
from dataclasses import dataclass

import torch

from peakpoint import register
from peakpoint.optimizers.settings import Optimizer


class Hidden(torch.optim.SGD):
    taken = 0  # a memory that no state_dict holds

    def step(self, closure=None):
        self.taken += 1
        for group in self.param_groups:
            for p in group["params"]:
                p.grad *= self.taken
        return super().step(closure)


class Ignored(torch.optim.SGD):
    def load_state_dict(self, state_dict):  # takes nothing back of what was saved
        super().load_state_dict({**state_dict, "state": {}})


@register("optimizer", "hidden")
@dataclass(kw_only=True)
class Settings(Optimizer):
    lr: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = None

    def build(self, groups):
        return Hidden(groups, lr=self.lr)


@register("optimizer", "ignored")
@dataclass(kw_only=True)
class More(Settings):
    def build(self, groups):
        return Ignored(groups, lr=self.lr, momentum=0.9)
"""


def prove(*arguments, cwd):
    """The command as a process; what it leaves behind would lie in `cwd`."""
    return process(
        "-m",
        "peakpoint",
        "prove-resume",
        *arguments,
        cwd=cwd,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(cwd)]),
        TMPDIR=str(cwd),
    )


@pytest.mark.slow
def test_the_trainer_resumes_exactly(tmp_path):
    done = prove(*TINY, "optimizer=adamwspam", "--steps", "6", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found.pop("values") > 12 * 100
    assert found == {"equal": True, "steps": 12, "killed_after": 6, "resumed_from": 6, "first": None}
    assert list(tmp_path.glob("prove-resume-*")) == []  # it cleans up


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "leaf"),
    [("hidden", "model_state_dict/"), ("ignored", "optimizer_state_dict/state/0/momentum_buffer")],
)
def test_what_is_not_restored_is_named(optimizer, leaf, tmp_path):
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    tiny = [o for o in TINY if not o.startswith("pruning")]
    chosen = [*tiny, "pruning=none", "plugins=[forgetful]", f"optimizer={optimizer}"]
    done = prove(*chosen, "--steps", "3", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    first, alone, resumed = done.stdout.splitlines()
    assert first.startswith(f"differs first at step 4: {leaf}")
    assert "elements differ" in alone
    assert "element" in resumed


@pytest.mark.slow
def test_a_run_by_its_directory(finished, tmp_path):
    mirror = f"checkpoint.mirror.url=file://{tmp_path}/far"
    done = prove(str(finished), "checkpoint.compress=true", mirror, "--steps", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("equal to the last bit: 4 steps, their batches and ")
    assert done.stdout.endswith("killed after step 2, resumed from step 2\n")
    assert not (tmp_path / "far").exists()  # nobody wants copies of a proof


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere is neither the directory of a run nor an override"),
        (["model=lenet5", "nowhere"], "nowhere sets nothing: values are set as key=value"),
        (["optimizer=nope"], "error: optimizer=nope is not"),
        (["optimizer.lrr=1"], "error: optimizer.lrr is not a key"),
        (["checkpoint/policy=[best]"], "add interval to checkpoint/policy"),
        ([*TINY, "--steps", "100"], "The run has 24 steps: use --steps with fewer"),
    ],
)
def test_what_cannot_be_proved_is_one_line(arguments, sentence, tmp_path):
    done = prove(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert "Traceback" not in done.stderr
    assert ("run ..." in done.stderr) == ("The run has" in sentence)  # what is refused starts no run


def test_code_that_a_run_used_is_imported_only_at_the_users_word(finished, tmp_path):
    record = json.loads((finished / "run.json").read_text())
    record["attempts"][-1]["overrides"].append("plugins=[theirs]")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    done = prove(str(tmp_path / "run"), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "This run used plugins=[theirs]. Code is imported, the environment read" in done.stderr


def test_another_batch_is_seen(whole_run, tmp_path):
    """The trainer is exact, so what its runs write down is changed here afterwards."""
    root = whole_run / "checkpoints"
    steps = {m.global_step: root / m.file for m in listing.manifests(root) if m.global_step <= 3}
    proof = prove_resume.Proof(tmp_path, 1, steps, steps)
    rows = [{"epoch": 1, "batch": n, "images": f"{n}", "labels": "same"} for n in range(4)]

    def write(name, taken):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in taken))

    write("uninterrupted", rows[:3])
    write("killed", rows[:2])
    write("resumed", rows[1:3])
    assert proof.first_difference() is None
    for taken, leaf in (
        ([rows[1], rows[3]], "batch/batch"),
        ([rows[1], {**rows[2], "images": "5"}], "batch/images"),
        ([rows[1]], "batch/epoch"),
    ):
        write("resumed", taken)
        found = proof.first_difference()
        assert (found.leaf, found.step) == (leaf, 3)


def compared(folder, *weights):
    """What is found of two files with these weights and other times."""
    paths = [folder / "a.pt", folder / "b.pt"]
    for number, (path, weight) in enumerate(zip(paths, weights, strict=True)):
        with path.open("wb") as file:
            facts = {"timestamp": str(number), "git_commit": [None, "abc"][number]}
            serialize.dump({"model_state_dict": {"w": weight}, "epoch": 3, **facts}, file)
    return prove_resume.compare(*paths)


def test_nan_equals_itself(tmp_path):
    assert compared(tmp_path, *(torch.tensor([1.0, math.nan, -0.0]) for _ in range(2))) == (2, None)


@pytest.mark.parametrize(
    ("other", "values"),
    [
        (torch.tensor([0.0, -0.0]), ("element 1 is 0.0; 1 of 2 elements differ", "element 1 is -0.0")),
        (torch.zeros(4)[::2], ("strides (1,)", "strides (2,)")),
        (torch.zeros(2).half(), tuple(f"a tensor of torch.{t}, shape (2,)" for t in ("float32", "float16"))),
    ],
)
def test_the_first_that_differs_is_shown(tmp_path, other, values):
    assert compared(tmp_path, torch.zeros(2), other) == (2, ("model_state_dict/w", *values))
