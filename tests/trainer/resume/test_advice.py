"""The command that a run prints to be resumed works as it is printed, and names what can be changed."""

import re
import shlex

import pytest

from peakpoint.trainer.config import recorded
from tests.conftest import TINY, complete_run, status
from tests.states import newest

SHORT = [*TINY, "optimizer=sgd", "test=false"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that max_steps ended in its first epoch; the tests leave it as it is."""
    run = tmp_path_factory.mktemp("ended") / "run"
    return complete_run(run, *SHORT, "max_steps=5")


def test_what_max_steps_ended_goes_on_with_more_steps(train, ended):
    done = train(f"resume={ended}")
    assert done.code == 0
    assert "is finished at epoch 1, step 5: max_steps=5 is reached" in done.out
    assert re.search(
        r"To train on: python train.py resume=\S+ max_steps=M with M above 5, or null\.", done.out
    )


def test_what_all_epochs_ended_goes_on_with_more_of_them(train, whole_run):
    assert "epochs=N with N above 3." in train(f"resume={whole_run}").out
    done = train(f"resume={whole_run}", "max_steps=24")
    assert done.code == 1
    assert "epochs=N max_steps=M with N above 3 and M above 24, or null." in done.err


def test_what_a_policy_ended_goes_on_with_another_setting(train, tmp_path):
    patience = "checkpoint.policy.early_stopping"
    assert train(*SHORT, f"{patience}.patience=1", f"{patience}.min_delta=1", "hydra.run.dir=run").code == 0
    assert status(tmp_path / "run")["epoch"] == 2
    done = train("resume=run")
    assert "To train on: python train.py resume=run with another setting of what ended it." in done.out
    assert train("resume=run", f"{patience}.patience=9").code == 0
    assert status(tmp_path / "run")["epoch"] == 3


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["model=resnet20"], "model.name was lenet5 in this run and is resnet20 now"),
        (["seed=1"], "seed was 0 in this run and is 1 now"),
        (["epochs=9"], "No step is left for epochs to change. To train on: "),
        (["epochs=1", "max_steps=3"], "No step is left for epochs, max_steps to change. To train on: "),
        (["optimizer.lr=0.5"], "No step is left for optimizer.lr to change. To train on: "),
        (
            ["epochs=9", "checkpoint.keep_last=7"],
            "No step is left for checkpoint.keep_last, epochs to change",
        ),
        (["pruning=magnitude"], "No step is left for pruning.frequency, pruning.target to change"),
    ],
)
def test_a_change_that_comes_to_nothing_is_an_error(train, ended, typed, sentence):
    """Also when the run is finished: what was typed is never passed over with exit code 0."""
    before = {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()}
    done = train(f"resume={ended}", *typed)
    assert done.code == 1
    assert sentence in done.err
    assert done.err.count("\n") == 1
    assert {p: p.read_bytes() for p in ended.rglob("*") if p.is_file()} == before


def test_what_was_asked_for_already_is_no_change(train, ended):
    """The same command in a queue that starts it again until it is done."""
    assert train(f"resume={ended}", "max_steps=5", "model=lenet5", "optimizer.lr=0.1").code == 0


MINE = "# @package _global_\nlog_every: 7\n"


@pytest.mark.parametrize(
    "place",
    [
        ["--config-dir", "my conf=x"],
        ["-cd", "my conf=x"],
        ["--config-dir=my conf=x"],
        ["hydra.searchpath=['file://{here}/my conf=x']"],
    ],
    ids=["--config-dir", "-cd", "--config-dir=", "hydra.searchpath"],
)
def test_the_printed_command_goes_on_as_it_stands(train, tmp_path, monkeypatch, place):
    """With a configuration, a plugin, a variable, a mirror and a name that a shell and Hydra would cut."""
    (tmp_path / "my conf=x" / "experiment").mkdir(parents=True)
    (tmp_path / "my conf=x" / "experiment" / "mine.yaml").write_text(MINE)
    monkeypatch.setenv("STEPS", "5")
    rest = ["plugins=[tests.trainer.signalling]", "experiment=mine", "max_steps=${oc.env:STEPS}"]
    rest += [f"checkpoint.mirror.url='file://{tmp_path}/mirror'", "hydra.run.dir='a run, [x]'"]
    policies = "checkpoint/policy=[interval,best,signalling]"
    kill = [f"checkpoint.policy.signalling.{each}" for each in ("when=step", "step=3", "number=15")]
    where = [word.format(here=tmp_path) for word in place]
    killed = train(*where, *SHORT, *rest, policies, *kill)
    assert killed.code == 143, killed.err
    record = (tmp_path / "a run, [x]" / "run.json").read_text()
    assert '"max_steps=${oc.env:STEPS}"' in record  # its name, whatever the variable holds
    (line,) = re.findall("to go on: (.*)", killed.out)
    words = shlex.split(line)
    assert words[:2] == ["python", "train.py"]
    without = train(words[-1], *recorded.needs_word(words))
    option = "hydra.searchpath" if len(place) == 1 and place[0].startswith("hydra") else "--config-dir"
    assert without.code == 1
    assert "experiment=mine is not a choice" in without.err
    assert without.err.endswith(f" The run was started with {option}: add what was given there.\n")
    done = train(*words[2:])
    assert done.code == 0, done.err
    run = tmp_path / "a run, [x]"
    assert status(run)["step"] == 5
    assert newest(run).global_step == 5
    (again,) = re.findall("To train on: (.*) with", train(*words[2:]).out)
    words = [{"max_steps=M": "max_steps=7"}.get(word, word) for word in shlex.split(again)]
    assert train(*words[2:]).code == 0
    assert status(run)["step"] == 7


def test_a_directory_that_is_taken_prints_what_works(train, tmp_path):
    assert train(*SHORT, "max_steps=1", "hydra.run.dir='a run'").code == 0
    taken = train(*SHORT, "hydra.run.dir='a run'")
    assert taken.code == 1
    (word,) = shlex.split(re.findall("go on with (.*), or choose", taken.err)[0])
    done = train(word, "max_steps=2")
    assert done.code == 0, done.err
    assert status(tmp_path / "a run")["step"] == 2
