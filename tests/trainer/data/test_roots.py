"""A folder that only a record names is read, and nothing is made in it."""

import shutil

import pytest

from peakpoint.base.errors import UserError
from peakpoint.commands.dispatch import main
from peakpoint.deployment.inference import evaluate
from peakpoint.trainer.data import torchvision
from peakpoint.trainer.data.settings import note_root
from tests.conftest import TINY
from tests.states import newest
from tests.trainer.data.data_cases import write_images

QUICK = [o for o in TINY if not o.startswith(("data", "epochs"))]


@pytest.fixture
def run(train, tmp_path):
    """A run on images in a folder, whose cache was taken away, as a record of a stranger would find it."""
    write_images(tmp_path / "pictures", (12, 12), mode="L", count=24)
    train(
        *QUICK, "data=image_folder", f"data.root={tmp_path}/pictures", "epochs=1", "hydra.run.dir=run"
    ).succeeded()
    cache = tmp_path / "pictures" / ".peakpoint"
    assert len(list(cache.glob("*.npy"))) == 2
    shutil.rmtree(cache)
    return tmp_path / "run"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "pictures" / ".peakpoint"


def test_a_resume_makes_no_cache_where_only_the_record_says(run, train, cache, tmp_path):
    done = train("resume=run", "epochs=2").succeeded()
    assert "only the record of the run names" in done.out
    assert not cache.exists()
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to("../elsewhere")
    assert train("resume=run", "epochs=3").code == 0
    assert not list((tmp_path / "elsewhere").iterdir())
    cache.unlink()
    assert train("resume=run", "epochs=4", f"data.root={tmp_path}/pictures").code == 0
    assert cache.is_dir()


def test_a_cache_that_is_there_is_used_and_filled_without_a_word(run, train, cache):
    cache.mkdir()
    done = train("resume=run", "epochs=2").succeeded()
    assert "only the record" not in done.out
    assert len(list(cache.glob("*.npy"))) == 2


@pytest.mark.slow
def test_a_proof_makes_none_either(run, cache):
    assert main(["prove-resume", str(run), "--steps", "1"]) == 0
    assert not cache.exists()


def test_a_measurement_makes_none_either(run, cache, tmp_path):
    saved = evaluate.trained_with(run / "checkpoints", newest(run))
    evaluate.data_of(saved).test_batches()
    assert not cache.exists()
    evaluate.data_of(saved, data_root=tmp_path / "pictures")
    assert cache.is_dir()


def test_nothing_is_downloaded_there(tmp_path):
    note_root(str(tmp_path / "far"), by_record=True)
    with pytest.raises(UserError, match="nothing is downloaded to it until the command does"):
        torchvision.load(tmp_path / "far", "MNIST", "mnist", "train")
    assert not (tmp_path / "far").exists()
