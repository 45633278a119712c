"""Every source, and one clear line for each thing that can be wrong with it."""

import hashlib
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from peakpoint.base.errors import UserError
from peakpoint.trainer.data.images import Images, load_npz
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.data.sources import Synthetic
from tests.trainer.data.data_cases import config, load_test, load_train, refused

torch.set_num_threads(1)


# The table


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros((2, 4, 4, 1)), torch.tensor([0, 1]), "must be uint8"),
        (torch.zeros((2, 4, 4), dtype=torch.uint8), torch.tensor([0, 1]), r"\(2, 4, 4\)"),
        (torch.zeros((0, 4, 4, 1), dtype=torch.uint8), torch.tensor([]).long(), "N above 0"),
        (torch.zeros((2, 4, 4, 1), dtype=torch.uint8), torch.tensor([0]), "Labels must be int64"),
        (
            torch.zeros((2, 4, 4, 1), dtype=torch.uint8),
            torch.tensor([0, 2]),
            "0 to 2, but there are 2",
        ),
        (torch.zeros((2, 4, 4, 1), dtype=torch.uint8), torch.tensor([0, -1]), "from -1"),
    ],
)
def test_a_source_that_gives_the_wrong_thing_is_found_out(images, labels, message):
    with pytest.raises(UserError, match=message):
        Images(images, labels, ("a", "b"))


# npz


def write_npz(root: Path, split: str = "train", **changed: object) -> None:
    arrays: dict[str, object] = {
        "images": np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3),
        "labels": np.arange(6) % 3,
        "classes": np.array(["cat", "dog", "owl"]),
    }
    arrays.update(changed)
    np.savez(root / f"{split}.npz", **{key: value for key, value in arrays.items() if value is not None})


def test_npz_is_read_as_it_is(tmp_path):
    write_npz(tmp_path)
    write_npz(tmp_path, "test", labels=np.zeros(6, np.uint8), classes=None)
    train, test = load_train(config("npz", tmp_path)), load_test(config("npz", tmp_path))
    assert train.images.shape == (6, 4, 5, 3)
    assert train.images.flatten().tolist() == [i % 256 for i in range(360)]
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert train.classes == test.classes == ("cat", "dog", "owl")
    assert test.labels.tolist() == [0] * 6


def test_npz_without_names_counts_the_classes_of_training(tmp_path):
    write_npz(tmp_path, classes=None, images=np.zeros((6, 4, 5), np.uint8))
    write_npz(tmp_path, "test", classes=None, labels=np.zeros(6, int))
    assert load_train(config("npz", tmp_path)).images.shape == (6, 4, 5, 1)
    assert load_test(config("npz", tmp_path)).classes == ("0", "1", "2")
    write_npz(tmp_path, "more", classes=None, labels=np.zeros(6, int))
    assert load_npz(tmp_path / "more.npz").classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": None}, "has no array 'images'; it holds labels, classes"),
        ({"labels": None}, "has no array 'labels'; it holds images, classes"),
        ({"images": np.zeros((6, 60), np.uint8)}, "of shape (6, 60)"),
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, "(6, 3, 8, 8): images.transpose(0, 2, 3, 1) makes"),
        ({"images": np.zeros((6, 1, 28, 28), np.uint8)}, "must have their channels last"),
        ({"images": np.zeros((6, 3, 24, 32), np.uint8)}, "must have their channels last"),
        ({"images": np.zeros((6, 3, 4, 4), np.uint8)}, "must have their channels last"),
        ({"images": np.zeros((6, 8, 8), np.float32)}, "float32 of shape (6, 8, 8): (images * 255).round()"),
        ({"images": np.full((6, 8, 8, 3), 200)}, "images.astype('uint8') makes bytes"),
        ({"images": np.full((6, 8, 8, 3), 300)}, "not int64 of shape (6, 8, 8, 3)."),
        ({"images": np.full((6, 8, 8, 3), np.nan)}, "not float64 of shape (6, 8, 8, 3)."),
        ({"images": np.zeros((0, 4, 5, 3), np.uint8)}, "images is empty, of shape (0, 4, 5, 3): save at"),
        ({"labels": np.array([])}, "labels is empty, of shape (0,): save at least one image"),
        ({"classes": np.array([], str)}, "classes is empty, of shape (0,): save at least one image"),
        ({"labels": np.arange(5)}, "Labels must be int64 of shape (6,), not torch.int64 of (5,)."),
        ({"labels": np.zeros(6)}, "labels must be integers of shape (N,), not float64"),
        ({"labels": np.zeros((6, 1), int)}, "of shape (6, 1)"),
        ({"labels": np.array([0, 1, 2, 3, 0, 0])}, "Labels run from 0 to 3, but there are 3 classes."),
        (
            {"labels": np.array([0, 1, 2, -1, 0, 0])},
            "labels[3] is -1, and labels are numbers from 0 to 65535",
        ),
        ({"labels": np.full(6, -1), "classes": None}, "labels[0] is -1, and labels are numbers from 0"),
        ({"labels": np.array([0, 1, 10**12, 0, 0, 0]), "classes": None}, "labels[2] is 1000000000000, and "),
        ({"labels": np.full(6, 2**64 - 1, np.uint64)}, "labels[0] is 18446744073709551615, and labels"),
        ({"classes": np.arange(3)}, "classes must be a list of text, not int64"),
        ({"classes": np.array(["a", "b", None], dtype=object)}, "cannot be read as an .npz file"),
        ({"images": np.array([{}], dtype=object)}, "cannot be read as an .npz file"),
    ],
)
def test_what_is_wrong_with_an_npz_is_one_line_with_its_name(tmp_path, changed, message):
    write_npz(tmp_path, **changed)
    line = refused(load_train, config("npz", tmp_path))
    assert message in line
    assert str(tmp_path / "train.npz") in line


def test_a_missing_npz_is_named(tmp_path):
    assert refused(load_train, config("npz", tmp_path)).startswith(f"{tmp_path}/train.npz is missing")
    write_npz(tmp_path)
    assert refused(load_test, config("npz", tmp_path)).startswith(f"{tmp_path}/test.npz is missing")


@pytest.mark.parametrize("damage", ["cut", "flip", "text", "pickle", "empty", "array", "folder", "pipe"])
def test_a_damaged_npz_is_one_line_without_advice_to_run_it(tmp_path, damage):
    write_npz(tmp_path)
    path = tmp_path / "train.npz"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[200] ^= 255  # within the pixels: seen by the checksum of the archive alone
        path.write_bytes(content)
    elif damage == "text":
        path.write_text("<html>404</html>")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps([1]))
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "array":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    else:
        path.unlink()
        path.mkdir() if damage == "folder" else os.mkfifo(path)
    line = refused(load_train, config("npz", tmp_path))
    assert f"{path} cannot be read" in line
    assert "allow_pickle" not in line
    if damage in ("text", "pickle"):
        assert "it is no archive of arrays, as np.savez writes it" in line


@pytest.mark.parametrize(
    "shape", [(20, 12, 13, 3), (20, 16, 16, 8), (20, 1, 30, 1), (20, 4, 4, 4), (20, 12, 12)]
)
def test_an_npz_with_its_channels_last_is_taken(tmp_path, shape):
    np.savez(tmp_path / "train.npz", images=np.zeros(shape, np.uint8), labels=np.arange(20) % 2)
    assert load_npz(tmp_path / "train.npz").images.shape == (*shape, 1)[:4]


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_class_without_an_image_is_a_warning(tmp_path, caplog, split):
    for name, present in (("train", 2 if split == "training" else 3), ("test", 2 if split == "test" else 3)):
        labels = np.arange(30) % present
        images = np.zeros((30, 8, 8, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    sizes = {"seed": 0, "batch_size": 4, "eval_batch_size": 8}
    DataModule(config("npz", tmp_path), **sizes, device=torch.device("cpu"), channels_last=False).read_test()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"no {split} image is of class 'c': ")


# digits and synthetic


def test_digits_are_split_the_same_way_every_time(tmp_path):
    cfg = config("digits", tmp_path)
    train, test = load_train(cfg), load_test(cfg)
    assert (len(train.images), len(test.images)) == (1438, 359)
    assert train.images.shape == (cfg.facts.images, cfg.facts.side, cfg.facts.side, cfg.facts.channels)
    scaled = load_digits().images[..., None] * 255 / 16
    both = np.concatenate([train.images, test.images])
    assert np.histogram(both, 256)[0].tolist() == np.histogram(scaled.round(), 256)[0].tolist()
    assert torch.bincount(test.labels).sub(36).abs().max() <= 1
    assert torch.equal(load_test(cfg).images, test.images)
    assert len(np.unique(both.reshape(1797, -1), axis=0)) == 1797


def test_digits_without_scikit_learn_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert "pip install 'peakpoint[digits]'" in refused(load_train, config("digits", tmp_path))


def synthetic(train_size: int = 2000) -> Synthetic:
    sizes = {"train_size": train_size, "test_size": 500, "num_classes": 10, "channels": 3, "native_size": 32}
    made = config("synthetic", **sizes)
    assert isinstance(made, Synthetic)
    return made


def test_synthetic_images_are_the_same_every_time_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, test = load_train(synthetic()), load_train(synthetic()), load_test(synthetic())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, again.images)
    assert first.images.shape == (2000, 32, 32, 3)
    assert not torch.equal(load_train(synthetic(500)).images, test.images)
    assert torch.bincount(test.labels).tolist() == [50] * 10
    assert hashlib.sha256(first.images.numpy().data).hexdigest()[:16] == "5c951d905233ae94"


def test_synthetic_images_can_be_learned_but_not_at_a_glance():
    train, test = load_train(synthetic()), load_test(synthetic())
    x, z = (s.images.flatten(1).double().sub(128).div(64) for s in (train, test))
    means = torch.stack([x[train.labels == label].mean(0) for label in range(10)])
    learned = (torch.cdist(z, means).argmin(1) == test.labels).double().mean()
    one_shot = (torch.cdist(z, x[:10]).argmin(1) == test.labels).double().mean()
    assert learned > 0.9
    assert one_shot < 0.6
