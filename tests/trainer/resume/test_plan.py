"""resume=: which command line it stands for, which run it means, and what may have changed."""

import json
import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from peakpoint.base.errors import UserError
from peakpoint.trainer.config.hydra_overrides import keys, quote
from peakpoint.trainer.resume.plan import Plan, locate, make_plan
from peakpoint.trainer.resume.refusals import check_changes
from peakpoint.trainer.sweep import record as sweep
from peakpoint.trainer.sweep.record import Job


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty directory to stand in; makes runs there whose attempts typed these overrides."""
    monkeypatch.chdir(tmp_path)

    def make(name, *overrides, started="2025-01-01"):
        run = tmp_path / name
        (run / "checkpoints" / "training").mkdir(parents=True)
        (run / ".hydra").mkdir()
        attempt = {"overrides": list(overrides), "started": started}
        (run / "run.json").write_text(json.dumps({"attempts": [{"overrides": ["old=1"]}, attempt]}))
        return run

    return make


def test_without_resume_a_command_line_stays_as_it_is(place):
    for argv in ([], ["epochs=3", "-m"], ["resume=null"], ["resume="], ["resume=''", "a=1"]):
        assert make_plan(argv) == Plan(argv, typed=keys(argv))


def test_the_saved_overrides_come_before_the_new_ones(place):
    run = place("run", "model=lenet5", "epochs=3", "optimizer.lr=1", "resume=x", "accept_drift=true")
    found = make_plan(["--config-dir", "x", "optimizer.lr=2", "resume=run", "+a=b", "seed=1"])
    assert found.argv == [
        "--config-dir=x",
        "model=lenet5", "epochs=3",
        "optimizer.lr=2", "+a=b", "seed=1",
        f'resume="{run}"', f'hydra.run.dir="{run}"',
    ]  # fmt: skip
    assert (found.run, found.file) == (run, None)
    assert found.typed == ("optimizer.lr", "resume", "a", "seed")


@pytest.mark.parametrize("option", ["--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn"])
def test_the_value_of_an_option_is_no_override(place, option):
    run = place("run", "seed=0")
    found = make_plan([option, "/a=b c", "resume=run"])
    assert found.argv == [f"{option}=/a=b c", "seed=0", f'resume="{run}"', f'hydra.run.dir="{run}"']
    assert found.typed == ("resume",)
    assert make_plan([option, "/a=b"]).typed == ()


@pytest.mark.parametrize(
    ("saved", "typed"),
    [
        ("epochs=3", "++epochs=5"),
        ("~checkpoint.policy.best", "checkpoint.policy.best=null"),
        ("+checkpoint/policy=top_k", "checkpoint/policy=[best]"),
        ("data.root='a b'", "data.root=c"),
    ],
)
def test_a_key_that_is_typed_again_replaces_the_saved_one(place, saved, typed):
    place("run", saved, "seed=0")
    assert make_plan([typed, "resume=run"]).argv[:2] == ["seed=0", typed]


RECORD = ("pruning=magnitude", "pruning.target=0.5", "scheduler.final_factor=0.1", "epochs=3")


@pytest.mark.parametrize(
    ("saved", "typed", "left"),
    [
        (RECORD, ["pruning=none"], ["scheduler.final_factor=0.1", "epochs=3"]),
        (RECORD, ["pruning=magnitude"], list(RECORD[1:])),
        (RECORD, ["pruning='none'"], ["scheduler.final_factor=0.1", "epochs=3"]),
        (RECORD, ["scheduler=constant"], ["pruning=magnitude", "pruning.target=0.5", "epochs=3"]),
        (RECORD, ["pruning.frequency=2", "~epochs"], list(RECORD[:3])),
        (["checkpoint.keep_last=2"], ["checkpoint=other"], []),
        (["checkpoint/policy=[best]", "checkpoint.policy.best.keep=3"], ["checkpoint=other"], []),
        (
            ["checkpoint.policy.best.keep=3", "checkpoint.policy.top_k.k=2", "~checkpoint.policy.best"],
            ["checkpoint/policy=[interval,best]"],
            ["checkpoint.policy.best.keep=3"],
        ),
        (["checkpoint.policy.best.keep=3"], ["~checkpoint.policy.best"], ["checkpoint.policy.best.keep=3"]),
        (["optimizer.lr=1"], ["optimizer=adamw"], []),  # an older record does not say what was chosen
    ],
)
def test_a_group_that_is_chosen_anew_takes_with_it_what_was_set_below(place, saved, typed, left):
    place("run", *saved)
    assert make_plan([*typed, "resume=run"]).argv[: len(left) + 1] == [*left, typed[0]]


def test_a_choice_that_is_typed_again_changes_nothing(place):
    run = place("run", "optimizer.lr=1", "model.dropout=0.3")
    record = json.loads((run / "run.json").read_text())
    record["attempts"][-1]["choices"] = {"optimizer": "adamw", "model": "lenet5"}
    (run / "run.json").write_text(json.dumps(record))
    assert make_plan(["model=lenet5", "resume=run"]).argv[:2] == ["optimizer.lr=1", "model.dropout=0.3"]
    assert make_plan(["model=resnet20", "resume=run"]).argv[:2] == ["optimizer.lr=1", "model=resnet20"]


def test_the_last_resume_counts_and_a_directory_of_its_own_makes_a_fork(place):
    place("a")
    second = place("b")
    assert make_plan(["resume=a", "resume=b"]).run == second
    assert make_plan(["resume=a", "resume=null"]).run is None
    argv = make_plan(["resume=a", "hydra.run.dir=fork"]).argv
    assert "hydra.run.dir=fork" in argv
    assert not any(a.startswith('hydra.run.dir="') for a in argv)


@pytest.mark.parametrize("name", ["a run", 'quo"te', "it's", "back\\slash", "[x], {y: 1}", "a=b", "ünï"])
def test_a_directory_of_any_name_is_quoted_for_hydra(place, name):
    run = place(name)
    found = make_plan([f"resume={quote(name)}"])
    assert found.run == run
    parser = OverridesParser.create()
    values = [parser.parse_override(a).value() for a in found.argv[:2]]
    assert values == [str(run), str(run)]


@pytest.mark.parametrize("argument", ["-m", "--multirun", "hydra.mode=MULTIRUN"])
def test_a_sweep_does_not_resume(place, argument):
    place("run")
    with pytest.raises(UserError, match=r"resume= goes on with one run"):
        make_plan(["resume=run", argument])


def test_plugins_are_imported_only_at_the_users_word(place):
    place("run", "plugins=[evil]")
    with pytest.raises(UserError, match=r"add 'plugins=\[evil\]' to the command"):
        make_plan(["resume=run"])
    assert "plugins=[evil]" not in make_plan(["resume=run", "plugins=[mine]"]).argv


def test_a_run_is_named_by_directory_file_or_link(place, monkeypatch, tmp_path):
    run = place("outputs/run")
    file = run / "checkpoints" / "training" / "a.pt"
    file.write_bytes(b"x")
    (file.parent / "latest.pt").symlink_to("a.pt")
    (tmp_path / "link").symlink_to(run)
    assert locate("outputs/run") == (run, None)
    assert locate(str(run) + "/") == (run, None)
    assert locate("link") == (run, None)
    assert locate("outputs/run/checkpoints/training/a.pt") == (run, file)
    assert locate("outputs/run/checkpoints/training/latest.pt") == (run, file)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/outputs/run") == (run, None)


def test_latest_is_the_run_that_was_started_last(place):
    """As its record says: a copy gives its files other times."""
    newest_run = place("outputs/a", started="2025-01-03")
    place("outputs/b", started="2025-01-02")
    assert make_plan(["resume=latest"]).run == newest_run
    job = place("outputs/sweeps/2025/7", started="2025-01-04")
    place("outputs/c", started="2025-01-01")
    assert make_plan(["resume=latest"]).run == job
    for number, run in enumerate((job, newest_run, *newest_run.parent.glob("b"))):  # as a copy makes them
        os.utime(run / "run.json", (number, number))
        os.utime(run, (number, number))
    assert make_plan(["resume=latest"]).run == job


def test_latest_is_the_sweep_whose_job_was_started_last(place):
    job = place("outputs/study/0", started="2025-01-04")
    begun = place("outputs/a", started="2025-01-03")
    sweep.write(job.parent, [Job(0, "0", ("seed=1",))], **facts("2025-01-02"))
    assert make_plan(["resume=latest"]).argv[-1] == f'hydra.sweep.dir="{job.parent}"'
    assert make_plan(["reproduce=latest"]).reproduces == job
    no_job_yet = job.parent.parent / "sweeps" / "new"
    no_job_yet.mkdir(parents=True)
    sweep.write(no_job_yet, [], **facts("2025-01-05"))
    assert make_plan(["resume=latest"]).argv[-1] == f'hydra.sweep.dir="{no_job_yet}"'
    (no_job_yet / "sweep.json").write_text("{}")
    (job.parent / "sweep.json").unlink()
    assert make_plan(["resume=latest"]).run == job
    (job / "run.json").unlink()
    assert make_plan(["resume=latest"]).run == begun


def facts(created):
    """What sweep.json says beside its jobs."""
    return {"command": "train.py -m", "overrides": ["seed=1,2"], "created": created, "launcher": "basic"}


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("nothing", "there is no such file or directory"),
        ("empty", "the directory has no run.json, so it is not that of a run.$"),
        ("a run/checkpoints", r"has no run.json, .* but lies in one: 'resume=\"/.*/a run\"'.$"),
        ("loose.pt", r"the file is not in the directory of a run"),
        ("dangling.pt", "there is no such file or directory"),
        ("broken", "run.json is not JSON"),
        ("list", "does not hold a JSON object"),
        ("foreign", "run.json records no attempt"),
    ],
)
def test_what_is_no_run_is_one_clear_line(place, tmp_path, value, sentence):
    (tmp_path / "empty").mkdir()
    place("a run")
    (tmp_path / "loose.pt").touch()
    (tmp_path / "dangling.pt").symlink_to("gone.pt")
    for name, text in (("broken", "{"), ("list", "[]"), ("foreign", '{"name": "of another program"}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        make_plan([f"resume={value}"])


def config(**changes):
    plain = {
        "model": {"name": "lenet5", "dropout": 0.0},
        "data": {"name": "digits", "root": "a"},
        "optimizer": {"name": "adamw", "lr": 0.1},
        "scheduler": {"name": "cosine"},
        "seed": 0,
        "batch_size": 16,
        "epochs": 3,
        "link": "${epochs}",
        "resume": None,
        "accept_drift": False,
        "retry_failed": False,
    }
    cfg = OmegaConf.create(plain)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model__dropout", 0.5), ("model__name", "resnet18"), ("data__name", "npz"), ("seed", 1),
        ("batch_size", 32), ("optimizer__name", "sgd"), ("model__new", 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("accept", [False, True])
def test_what_makes_it_another_run_is_refused_whatever_was_typed(key, value, accept):
    dotted = key.replace("__", ".")
    with pytest.raises(UserError, match=rf"^{dotted} was .* Start a new run instead"):
        check_changes(config(**{key: value}, accept_drift=accept), config(), (dotted, "optimizer", "model"))


@pytest.mark.parametrize(
    ("key", "value", "typed"),
    [
        ("epochs", 5, ("epochs",)),
        ("data__root", "elsewhere", ("data.root",)),
        ("optimizer__lr", 0.2, ("optimizer.lr",)),
        ("optimizer__lr", 0.2, ("optimizer",)),
        ("scheduler__name", "constant", ("scheduler",)),
        ("scheduler__name", "constant", ("experiment",)),
        ("checkpoint__policy__best", 1, ("checkpoint/policy",)),
    ],
)
def test_a_change_that_was_typed_is_listed(key, value, typed):
    (line,) = check_changes(config(**{key: value}), config(), typed)
    assert line.startswith(f"{key.replace('__', '.')}: ")
    assert line.endswith(f"-> {value}")


def test_a_policy_that_is_chosen_no_longer_is_one_line():
    saved = config()
    OmegaConf.update(saved, "checkpoint", {"policy": {"best": {"keep": 3, "mode": "max"}, "top_k": {"k": 2}}})
    now = config()
    OmegaConf.update(now, "checkpoint", {"policy": {"top_k": {"k": 3}}}, merge=False)
    assert check_changes(now, saved, ("checkpoint/policy",)) == [
        "checkpoint.policy.best: removed",
        "checkpoint.policy.top_k.k: 2 -> 3",
    ]


def test_what_nobody_typed_is_drift():
    with pytest.raises(
        UserError, match=r"^epochs was 3 and is 5 now.* Add epochs=3 to keep it, or accept_drift"
    ):
        check_changes(config(epochs=5), config(), ("optimizer.lr", "epoch"))
    assert check_changes(config(epochs=5, accept_drift=True), config(), ()) == ["epochs: 3 -> 5"]
    assert check_changes(config(resume="x"), config(), ()) == []
