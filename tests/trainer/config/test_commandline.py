"""A mistyped command line is one line that names what can be typed instead."""

import shlex

import pytest

from peakpoint.trainer.config.choices import register_schemas
from peakpoint.trainer.config.commandline import read
from tests.conftest import ROOT, TINY, process, run_main

REFUSED = {
    # The shell has cut at a space.
    "-m optimizer=adam, sgd": "the shell cuts at spaces; without them: optimizer=adam,sgd",
    "-m optimizer=adam ,sgd seed=1": "the shell cuts at spaces; without them: optimizer=adam,sgd",
    "checkpoint/policy=[best, top_k] seed=1": "without them: 'checkpoint/policy=[best,top_k]'",
    "plugins=[a b]": "the shell cuts at spaces; without them: 'plugins=[a,b]'",
    "epochs = 10": "the shell cuts at spaces; without them: epochs=10",
    "epochs= 10 seed=1": "the shell cuts at spaces; without them: epochs=10",
    "epochs =10": "the shell cuts at spaces; without them: epochs=10",
    "epochs 10": "the shell cuts at spaces; without them: epochs=10",
    "optimizer adam": "the shell cuts at spaces; without them: optimizer=adam",
    "'epochs = 10'": "'epochs = 10' has spaces around its value: type epochs=10",
    # Options.
    "--epochs 10": "--epochs 10: values are set without dashes: type epochs=10",
    "--epochs=10": "--epochs=10: values are set without dashes: type epochs=10",
    "-epochs=10": "-epochs=10: values are set without dashes: type epochs=10",
    "--lr 0.1": "--lr 0.1: values are set without dashes: type optimizer.lr=0.1",
    "--batch-size=8": "--batch-size=8: values are set without dashes: type batch_size=8",
    "--model resnet18": "--model resnet18: values are set without dashes: type model=resnet18",
    "--multrun seed=1,2": "--multrun is not an option: did you mean --multirun?",
    "-cfg job": "-cfg is not an option: did you mean --cfg?",
    "--cfg jobb": "--cfg jobb is not a choice; there are: job, hydra, all.",
    "--cfg": "--cfg has no value; there are: job, hydra, all.",
    "--config-name": "--config-name has no value: add one.",
    "--config-name nope": "--config-name nope is not a choice; there are: config.",
    "--config-path nope": "/nope' exists and readable",
    "-e 10": "-e is not an option; python train.py --hydra-help lists all.",
    # Names.
    "lr=0.1": "lr is not a key of this configuration: did you mean optimizer.lr=0.1?",
    "learning_rate=0.1": "did you mean optimizer.lr=0.1?",
    "optimizer.learning_rate=0.1": "did you mean optimizer.lr?",
    "optimizer.learning_rate=": "did you mean optimizer.lr?",
    "optimizer.wd=0.1": "did you mean optimizer.weight_decay?",
    "bs=32": "did you mean batch_size=32?",
    "max_epochs=3": "did you mean epochs=3?",
    "trainer.max_epochs=3": "did you mean epochs=3?",
    "momentum=0.9": "did you mean optimizer.momentum=0.9?",
    "sparsity=0.9": "did you mean pruning.target=0.9?",
    "output_dir=x": "did you mean hydra.run.dir=x?",
    "model.dropuot=0.1": "did you mean model.dropout?",
    "optimiser=sgd": "did you mean optimizer=sgd?",
    "optimizer=SGD": "optimizer=SGD is not a choice: did you mean sgd?",
    "data.class_names=x": "data.class_names is not a key of this configuration",
    # No `=`.
    "epochs:10": "epochs:10 sets nothing: type epochs=10",
    "resnet50": "resnet50 sets nothing: did you mean model=resnet50?",
    "optimizer/sgd": "optimizer/sgd sets nothing: did you mean optimizer=sgd?",
    "optimizer": "optimizer sets nothing: it needs a value: optimizer=NAME; there are: adam, adamw,",
    "epochs": "epochs sets nothing: it needs a value: type epochs=VALUE",
    "-m seed=1 2": "2 sets nothing: values are set as key=value, such as epochs=10",
    "runs/a.pt": "runs/a.pt sets nothing: did you mean resume=runs/a.pt?",
    # Values.
    "optimizer.lr=": "optimizer.lr= has no value: type optimizer.lr=VALUE",
    "optimizer=": "optimizer= has no value; there are: adam, adamw, adamwprune, adamwspam, ",
    "resume=": "resume= has no value: type resume=VALUE",
    "=10": "=10 sets nothing: values are set as key=value",
    "checkpoint.monitor=loss": "type checkpoint.monitor.metric=VALUE checkpoint.monitor.mode=VALUE",
    "epochs==10": "epochs==10: one = is enough: type epochs=10",
    "epochs=10,": "epochs=10, ends with a comma: type epochs=10",
    "epochs=ten": "epochs=ten is not a whole number.",
    "pruning.target=50%": "pruning.target=50% is not a number: type pruning.target=0.5",
    "test=maybe": "test=maybe is not true or false.",
    "checkpoint.monitor.mode=up": "checkpoint.monitor.mode=up is not a choice; there are: max, min.",
    "seed=1,2": "seed=1,2 has several values: type -m seed=1,2 to train with each.",
    "'seed=range(0,3)'": "type -m 'seed=range(0,3)' to train with each.",
    "pruning.target=0,5": "or pruning.target=0.5 for a number with a fraction.",
    "data.root=a,b": "or 'data.root=\"a,b\"' for the text as it is.",
    "checkpoint/policy=best,top_k": "needs brackets: type 'checkpoint/policy=[best,top_k]'",
    "checkpoint.policy=[best]": "checkpoint.policy is chosen with a slash: type 'checkpoint/policy=[best]'",
    "'checkpoint/policy=[best'": "cannot be read: a list is written as [a,b]",
    "hydra.run.dir=[x]": "'hydra.run.dir=[x]' is not the name of a folder: type hydra.run.dir=FOLDER",
    "hydra.run.dir=null": "hydra.run.dir=null is not the name of a folder: type hydra.run.dir=FOLDER",
    "hydra.run.dir={a:1}": "is not the name of a folder: type hydra.run.dir=FOLDER",
    "-m hydra.sweep.dir=[x]": "'hydra.sweep.dir=[x]' is not the name of a folder: type hydra.sweep.dir=",
    "-m hydra.sweep.subdir=null": "is not the name of a folder: type hydra.sweep.subdir=FOLDER",
    "plugins=os": "plugins=os needs brackets: type 'plugins=[os]'",
    "plugins=null": "plugins=null needs brackets: type 'plugins=[]'",
    "plugins=[null]": "'plugins=[null]' is not a choice: leave it out, or name a module.",
    "checkpoint.mirror.what=best": "what=best needs brackets: type 'checkpoint.mirror.what=[best]'",
    "checkpoint/policy=null": "checkpoint/policy=null needs brackets: type 'checkpoint/policy=[]'",
    "checkpoint/policy=[best,null]": "is not a choice; there are: best, early_stopping, interval, ",
    "model=[null]": "'model=[null]' is not a choice; there are: ",
    "experiment=[null]": "'experiment=[null]' is not a choice; there are: demo",
    "pruning=[1]": "'pruning=[1]' is not a choice; there are: auto, magnitude, none, ",
    "-m checkpoint/policy=[best],[null]": "is not a choice; there are: best, early_stopping, ",
    "-m data=digits,null": "data=digits,null is not a choice; there are: cifar10, ",
    "'logger=[\"\"]'": "is not a choice; there are: console, mlflow, tensorboard, wandb.",
    "logger=[[console]]": "'logger=[[console]]' is not a choice; there are: console, mlflow, ",
    "'logger={console:{}}'": "'logger={console:{}}' sets nothing: type 'logger=[console]'",
    "logger.tensorboard=false": "leave it out with ~logger.tensorboard, or choose with 'logger",
    "checkpoint.policy.best=null": "leave it out with ~checkpoint.policy.best, or choose with 'checkpoint/po",
    "tensorboard=maybe": "tensorboard is not a key of this configuration: did you mean 'logger=[console,",
    "tensorboard=": "did you mean 'logger=[console,tensorboard]'?",
    "'tensorboard={a: 1}'": "did you mean 'logger=[console,tensorboard]'?",
    "pruning.method=foo": "pruning.method is set as pruning; there are: auto, magnitude, none, ",
    "pruning.method=magnitud": "pruning.method is set as pruning: did you mean pruning=magnitude?",
    # Removals.
    "~checkpoint.policy.interval.epochs": "a value that is needed: type checkpoint.interval=VALUE to set it.",
    "~hydra.run.dir": "would remove what Hydra needs: leave it out, or set it as hydra.run.dir=VALUE",
    "~pruning": "~pruning would remove a choice that is needed: type pruning=NAME; there are: auto, magn",
    "~pruning=auto": "~pruning=auto would remove a choice that is needed: type pruning=NAME; there are: ",
    "pruning=null": "pruning=null is not a choice; there are: auto, magnitude, none, ",
    "experiment=null": "experiment=null is not a choice: leave it out, or type ~experiment",
    "~data": "~data would remove a choice that is needed: type data=NAME; there are: cifar10",
    "~checkpoint/policy": "would remove a list that is needed: type 'checkpoint/policy=[]'",
    "~checkpoint.policy": "would remove a list that is needed: type 'checkpoint/policy=[]'",
    "~checkpoint.policy.bset": "~checkpoint.policy.bset removes nothing, since this configuration has ",
    "~local": "~local removes nothing, since this configuration has no local: leave it out.",
    "~optimizer.lr": "~optimizer.lr would remove a value that is needed: type optimizer.lr=VALUE to set it.",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_what_cannot_be_meant_is_one_line_that_says_what_to_type(train, typed):
    done = train(*shlex.split(typed))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert REFUSED[typed] in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "path",
    ["a=b", "größe", "~b", "{x}", "[a]", "(1)", "it's", "a&b", "a b", "x#1", "日本", 'say "x"', "a!b;c|d"],
)
def test_a_path_that_only_the_grammar_minds_is_taken_as_it_is(train, tmp_path, path):
    done = train("--cfg", "job", f"data.root=/d/{path}", f"hydra.run.dir={tmp_path}/{path}", "data=synthetic")
    assert (done.code, done.err) == (0, "")
    assert f"root: /d/{path}" in done.out.replace("''", "'").replace("'/d", "/d").replace("\\", "")


def test_a_relative_folder_of_the_configuration_is_one_beside_train_py(train):
    done = train("--config-path", "conf", "--cfg", "job", "epochs=7")
    assert (done.code, done.err) == (0, "")
    assert "\nepochs: 7\n" in done.out


def test_options_may_stand_anywhere(train):
    done = train("data=synthetic", "--cfg", "job", "epochs=7").succeeded()
    assert "\nepochs: 7\n" in done.out


@pytest.mark.parametrize("how", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_every_way_to_sweep_takes_several_values(how):
    register_schemas()
    assert set(read([how, "seed=1,2"])) == {how, "seed=1,2"}


@pytest.mark.parametrize("place", [["--config-dir=x"], ["--config-dir", "x"], ["-cd", "x"]])
def test_an_option_takes_its_own_value_and_no_other(place):
    register_schemas()
    assert read(["epochs=3", *place, "seed=1"]) == [*place, "epochs=3", "seed=1"]


def test_a_name_with_braces_needs_no_quotes(train):
    done = train("--cfg", "job", "checkpoint.name={model}_{epoch}", "pruning.target=.5").succeeded()
    assert "name: '{model}_{epoch}'" in done.out
    assert "target: 0.5" in done.out


@pytest.mark.parametrize(
    ("value", "shown"), [("0", False), ("", False), ("false", False), ("1", True), ("true", True)]
)
def test_hydra_full_error_is_on_only_when_it_says_so(tmp_path, value, shown):
    done = process(ROOT / "train.py", "epochs=ten", cwd=tmp_path, HYDRA_FULL_ERROR=value)
    assert done.returncode == 1
    assert ("Traceback" in done.stderr) is shown
    assert (done.stderr == "error: epochs=ten is not a whole number.\n") is not shown


def test_help_is_as_it_was():
    for typed in ("--help", "--hydra-help", "--info searchpath", "--version", "-sc install=bash"):
        done = run_main(*typed.split()).succeeded()
        assert done.out


@pytest.mark.parametrize(
    "key", ["checkpoint.keep_last", "checkpoint.policy.top_k.k", "epochs", "optimizer.lr"]
)
def test_null_is_no_value_where_one_is_needed(train, key):
    done = train("checkpoint/policy=[interval,top_k]", f"{key}=null")
    assert (done.code, done.err) == (1, f"error: {key}=null: it needs a value.\n")


@pytest.mark.parametrize("typed", ["~/runs/a", '"~/runs/a"'])
def test_a_run_in_the_home_directory_makes_no_folder_of_that_name(train, tmp_path, monkeypatch, typed):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tiny = [*TINY, "max_steps=1", "test=false", "checkpoint/policy=[interval]"]
    train(*tiny, f"hydra.run.dir={typed}").succeeded()
    assert (tmp_path / "home" / "runs" / "a" / "run.json").is_file()
    assert not (tmp_path / "~").exists()
    assert train("resume=~/runs/a").code == 0


def test_a_tilde_in_conf_is_refused(train, tmp_path):
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "local" / "default.yaml").write_text(
        "# @package _global_\nhydra: {run: {dir: ~/runs/a}}\n"
    )
    err = train(*TINY, f"--config-dir={tmp_path / 'mine'}").refusal()
    assert err.startswith("error: hydra.run.dir=~/runs/a would make a folder named ~: write ${oc.env:HOME}")
    assert not (tmp_path / "~").exists()
