"""Weights that are pruned stay pruned over a resume, until somebody says `pruning=regrow`."""

import shutil

import pytest
import torch

from peakpoint.checkpointing.state import serialize
from peakpoint.checkpointing.storage import listing
from peakpoint.commands.dispatch import main
from tests.conftest import TINY, complete_run, rows, run_main
from tests.states import differences, load_newest, newest

STEPS = [
    *TINY,
    "epochs=1",
    "test=false",
    "optimizer=adamw",
    "checkpoint.interval_steps=1",
    "checkpoint.keep_last=99",
]
TO_HALF = ["pruning=magnitude", "pruning.target=0.5", "pruning.frequency=2"]
PHASES = {
    "dense to pruned": [*TO_HALF, "epochs=2"],
    "fine-tuned": ["pruning=none", "epochs=3"],
    "pruned further": ["pruning=magnitude", "pruning.target=0.9", "pruning.frequency=2", "epochs=4"],
    "regrown": ["pruning=regrow", "epochs=5"],
}


@pytest.fixture(scope="module")
def phases(tmp_path_factory):
    """One run after each of the phases, with a checkpoint of every step; not to be changed."""
    folder = tmp_path_factory.mktemp("phases")
    run = folder / "run"
    complete_run(run, *STEPS)
    printed = {}
    for name, typed in PHASES.items():
        done = run_main(f"resume={run}", *typed)
        assert done.code == 0, done.err
        printed[name] = done.out
        shutil.copytree(run, folder / name, symlinks=True)
    return folder, printed


def kept_weights(run, step):
    """Which of the prunable weights are not zero after a step."""
    found = next(m for m in listing.manifests(run / "checkpoints") if m.global_step == step)
    weights = serialize.load(run / "checkpoints" / found.file)["model_state_dict"]
    return torch.cat([w.flatten() != 0 for n, w in weights.items() if w.dim() > 1 and n.endswith("weight")])


def test_dense_then_pruned_then_fine_tuned_then_pruned_further_each_in_one_command(phases):
    folder, printed = phases
    run = folder / "regrown"
    sparsities = [row["sparsity"] for row in rows(run, "eval")]
    assert sparsities[:4] == pytest.approx([0.0, 0.5, 0.5, 0.9], abs=1e-3)
    assert sparsities[4] < 0.8
    assert "pruning goes on at step 8, from 0.00 % to 50.00 %" in printed["dense to pruned"]
    assert "50.00 % of the weights stay pruned; pruning=regrow lets them grow back" in printed["fine-tuned"]
    assert "pruning goes on at step 24, from 50.00 % to 90.00 %" in printed["pruned further"]
    assert "pruning=regrow: the 90.00 % that were pruned are trained again" in printed["regrown"]
    assert "which nothing takes now" not in printed["regrown"]
    for step in range(9, 32):  # not one weight that was pruned comes back
        assert not (kept_weights(run, step + 1) & ~kept_weights(run, step)).any(), step
    assert torch.equal(kept_weights(run, 16), kept_weights(run, 24))


def test_the_ramp_runs_over_what_is_left_of_the_run(phases):
    folder, _ = phases
    run = folder / "regrown"
    zeros = [1 - kept_weights(run, step).float().mean().item() for step in range(8, 33)]
    to_half, further = zeros[:7], zeros[16:23]  # 0.8 of 8 steps is 6
    assert to_half[0] == 0.0
    assert further[0] == pytest.approx(0.5, abs=1e-3)
    assert further[2] == pytest.approx(0.9 - 0.4 * (2 / 3) ** 3, abs=1e-3)  # from the half, not from nothing
    for ramp in (to_half, further):
        assert ramp == sorted(ramp)
        assert len({round(each, 6) for each in ramp}) == 4  # every 2 steps a little, not at once


@pytest.mark.parametrize(
    ("phase", "step"),
    # 24: the switch itself, before the first checkpoint after it
    [
        ("dense to pruned", 11),
        ("fine-tuned", 19),
        ("pruned further", 24),
        ("pruned further", 27),
        ("regrown", 35),
    ],
)
def test_killed_after_the_switch_and_resumed_it_ends_bit_for_bit_the_same(
    phases, train, tmp_path, phase, step
):
    run = phases[0] / phase
    file = next(m for m in listing.manifests(run / "checkpoints") if m.global_step == step).file
    done = train(f"resume={run / 'checkpoints' / file}", "hydra.run.dir=fork")
    assert done.code == 0, done.err
    assert newest(tmp_path / "fork").global_step == newest(run).global_step
    assert differences(load_newest(run), load_newest(tmp_path / "fork")) == []


def test_the_report_and_the_table_are_of_the_target_that_now_holds(phases, capsys):
    folder, _ = phases
    for phase, target in {"dense to pruned": 0.5, "fine-tuned": 0.5, "pruned further": 0.9}.items():
        assert main(["report", str(folder / phase)]) == 0
        assert f"sparsity >= {target:.2f}" in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("pruned further")]
    assert " 0.9 " in row
    assert "pruning.target=0.9" in row
    assert "resume=" not in row


def test_what_counts_is_the_sparsity_that_the_network_has(phases):
    """Fine-tuned at a half: the target of the run is that, for its policies and in its checkpoints."""
    run = phases[0] / "fine-tuned"
    assert load_newest(run)["config"]["pruning"]["target"] == 0.5
    tagged = [m for m in listing.manifests(run / "checkpoints") if "best_accuracy_at_sparsity_0.50" in m.tags]
    assert tagged
    assert all(m.sparsity == pytest.approx(0.5, abs=1e-3) for m in tagged)


def test_a_target_of_zero_keeps_what_a_ramp_has_reached(phases, train, tmp_path):
    run = phases[0] / "pruned further"
    file = next(m for m in listing.manifests(run / "checkpoints") if m.global_step == 26).file
    done = train(f"resume={run / 'checkpoints' / file}", "hydra.run.dir=fork", "pruning.target=0")
    assert done.code == 0, done.err
    before = 1 - kept_weights(run, 26).float().mean().item()
    assert 0.5 < before < 0.9
    assert newest(tmp_path / "fork").sparsity == pytest.approx(before)
    assert load_newest(tmp_path / "fork")["config"]["pruning"]["target"] == pytest.approx(before, abs=1e-3)


def test_a_target_below_the_sparsity_is_refused_with_the_words_to_type(phases, train):
    done = train(
        f"resume={phases[0] / 'pruned further'}", "pruning.target=0.5", "epochs=9", "hydra.run.dir=fork"
    )
    assert done.code == 1
    assert "pruning.target=0.5 is below the sparsity of this network, 0.9" in done.err
    assert "keep it with pruning=none, or let them grow back with pruning=regrow first" in done.err
    assert done.err.count("\n") == 1


def test_a_target_typed_for_a_choice_without_pruning_is_still_refused(phases, train):
    done = train(
        f"resume={phases[0] / 'fine-tuned'}", "pruning=regrow", "pruning.target=0.5", "hydra.run.dir=fork"
    )
    assert done.code == 1
    assert "pruning=regrow trains dense, but pruning.target=0.5" in done.err


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("pruning.exclude=[fc]", "pruning.exclude was [] in this run and is ['fc'] now"),
        ("pruning.embeddings=true", "pruning.embeddings was False in this run and is True now"),
        ("pruning.pattern=2:4", "pruning.pattern was None in this run and is 2:4 now"),
    ],
)
def test_what_may_be_pruned_does_not_change_at_a_resume(phases, train, typed, sentence):
    done = train(f"resume={phases[0] / 'fine-tuned'}", typed, "epochs=9", "hydra.run.dir=fork")
    assert done.code == 1
    assert sentence in done.err
    assert done.err.count("\n") == 1


NOISE = [*STEPS, "plugins=[tests.trainer.noise]", *TO_HALF, "pruning.criterion=noise"]


def test_a_resumed_run_keeps_the_options_of_its_criterion_and_draws_the_same_numbers(train, tmp_path):
    typed = [*NOISE, "pruning.criterion_options.power=3"]
    whole = complete_run(tmp_path / "whole", *typed)
    assert load_newest(whole)["config"]["pruning"]["criterion_options"] == {"power": 3}
    first = next(m for m in listing.manifests(whole / "checkpoints") if m.global_step == 4)
    fork = f"resume={whole / 'checkpoints' / first.file}"
    done = train(fork, "plugins=[tests.trainer.noise]", "hydra.run.dir=fork")
    assert done.code == 0, done.err
    assert not differences(load_newest(whole), load_newest(tmp_path / "fork"))


def test_another_criterion_takes_the_options_of_the_one_before_with_it(train, tmp_path):
    run = complete_run(tmp_path / "run", *NOISE, "pruning.criterion_options.power=3")
    done = train(
        f"resume={run}", "plugins=[]", "epochs=2", "pruning.criterion=magnitude", "pruning.target=0.6"
    )
    assert done.code == 0, done.err
    assert "pruning.criterion_options.power: 3 -> None" in done.out
    assert load_newest(run)["config"]["pruning"]["criterion_options"] == {}
