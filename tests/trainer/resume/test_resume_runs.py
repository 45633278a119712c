"""resume= through the whole program: in place, by name, twice, and after a move."""

import json

import yaml

from tests.conftest import TINY, rows, status
from tests.states import newest
from tests.trainer.test_run_directory import listing


def test_a_pointer_to_the_newest_goes_on_in_place(train, tmp_path):
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0
    done = train("resume=run/checkpoints/training/latest.pt", "epochs=2")
    assert done.code == 0, done.err
    assert newest(tmp_path / "run").epoch == 2
    attempts = json.loads((tmp_path / "run" / "run.json").read_text())["attempts"]
    assert attempts[1]["resumed_from"].endswith("training/checkpoint_epoch_0001_step_00000008.pt")


def test_resumed_twice_the_later_word_counts(train, tmp_path):
    assert train(*TINY, "epochs=1", "log_every=1", "hydra.run.dir='a run'").code == 0
    assert train("resume='a run'", "epochs=2", "log_every=2").code == 0
    done = train("resume='a run'", "epochs=3")
    assert done.code == 0, done.err
    run = tmp_path / "a run"
    record = json.loads((run / "run.json").read_text())
    assert [a["number"] for a in record["attempts"]] == [1, 2, 3]
    last = record["attempts"][-1]["overrides"]
    assert [o for o in last if o.startswith(("epochs", "log_every"))] == ["log_every=2", "epochs=3"]
    assert [r["step"] for r in rows(run, "train")] == [*range(1, 9), *range(10, 25, 2)]
    assert record["config"]["log_every"] == 1  # the first attempt's record stays
    assert status(run)["state"] == "finished"


def _change_saved(run, change):
    """Make the saved configuration of a run that of another version of the program."""
    path = run / ".hydra" / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    change(saved)
    path.write_text(yaml.safe_dump(saved))


def test_a_run_of_an_earlier_or_later_version_goes_on(train, tmp_path):
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0

    def other_settings(saved):
        del saved["max_skipped"], saved["checkpoint"]["when_busy"], saved["model"]["dropout"]
        saved["checkpoint"]["monitor"]["window"] = 3

    _change_saved(tmp_path / "run", other_settings)
    done = train("resume=run", "epochs=2")
    assert done.code == 0, done.err
    assert newest(tmp_path / "run").epoch == 2


def test_a_policy_that_conf_no_longer_chooses_is_no_matter_of_versions(train, tmp_path):
    assert train(*TINY, "epochs=1", "hydra.run.dir=run").code == 0
    _change_saved(tmp_path / "run", lambda saved: saved["checkpoint"]["policy"].update(gone={"keep": 3}))
    done = train("resume=run", "epochs=2")
    assert done.code == 1
    assert "checkpoint.policy.gone.keep was 3 and is None now" in done.err


def test_a_job_of_a_sweep_can_be_resumed(train, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    done = train("-m", *TINY, "epochs=1", "optimizer=sgd,adamw", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.err
    assert (
        done.out.count("checkpoint/policy=[interval,best,") == 2
    )  # a line each; the table leaves out what all share
    done = train("resume=sweep/1", "epochs=2")
    assert done.code == 0, done.err
    state = status(tmp_path / "sweep" / "1")
    assert (state["state"], state["epoch"]) == ("finished", 2)
    assert (
        json.loads((tmp_path / "sweep" / "1" / "run.json").read_text())["config"]["optimizer"]["name"]
        == "adamw"
    )
    assert status(tmp_path / "sweep" / "0")["epoch"] == 1


def test_a_fork_leaves_the_run_that_it_comes_from_as_it_is(train, tmp_path):
    """Also what is damaged there: who does not own a run moves nothing."""
    assert train(*TINY, "epochs=1", "checkpoint.interval_steps=4", "hydra.run.dir=run").code == 0
    path = tmp_path / "run" / "checkpoints" / newest(tmp_path / "run").file
    data = path.read_bytes()
    path.unlink()  # the bytes may be shared with a milestone
    path.write_bytes(data[:-1] + b"!")
    before = listing(tmp_path / "run")
    done = train("resume=run", "epochs=2", "hydra.run.dir=fork")
    assert done.code == 0, done.err
    assert f"{path.name} is damaged, so an older one is used" in done.out
    assert listing(tmp_path / "run") == before
