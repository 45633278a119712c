"""An .npz as a source of images: what is none is refused safely, and a class without an image is told."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from peakpoint.base.errors import UserError
from peakpoint.trainer.config.schema import Data
from peakpoint.trainer.data.pipeline import build_data
from peakpoint.trainer.data.readers import load_npz

RUN = (
    *(
        "model=lenet5",
        "batch_size=4",
        "epochs=1",
        "device=cpu",
        "threads=1",
        "plot=false",
        "tensorboard=false",
    ),
    *("data=npz", "data.root=.", "hydra.run.dir=run"),
)


def built(root: Path):
    return build_data(
        Data(
            name="npz",
            root=str(root),
            val_fraction=0.1,
            image_size=None,
            crop_padding=0,
            flip=False,
            cutout=0,
        ),
        seed=0,
        batch_size=4,
        eval_batch_size=8,
        device=torch.device("cpu"),
        channels_last=False,
    )


@pytest.mark.parametrize("split", ["training", "test"])
def test_a_class_without_an_image_is_told(tmp_path, caplog, split):
    for name, present in (("train", 2 if split == "training" else 3), ("test", 2 if split == "test" else 3)):
        labels = np.arange(30) % present
        images = np.zeros((30, 8, 8, 3), np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels, classes=np.array(["a", "b", "c"]))
    built(tmp_path).read_test()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"no {split} image is of class 'c': ")


@pytest.mark.parametrize("content", ["text", "pickle", "pointer"])
def test_what_is_no_npz_is_refused_without_advice_to_run_it(tmp_path, content):
    bytes_ = {
        "text": b"hello",
        "pickle": pickle.dumps([1]),
        "pointer": b"version https://git-lfs.github.com/spec/v1\n",
    }
    (tmp_path / "x.npz").write_bytes(bytes_[content])
    with pytest.raises(UserError, match=r"it is no archive of arrays, as np\.savez writes it"):
        load_npz(tmp_path / "x.npz")


def test_a_pipe_in_place_of_an_npz_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(UserError, match="it is not a regular file"):
        load_npz(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (np.zeros((20, 3, 32, 32), np.uint8), r"\(20, 3, 32, 32\): images.transpose\(0, 2, 3, 1\) makes"),
        (np.zeros((20, 1, 28, 28), np.uint8), "must have their channels last"),
        (np.zeros((20, 3, 24, 32), np.uint8), "must have their channels last"),
        (np.zeros((20, 3, 4, 4), np.uint8), "must have their channels last"),
        (np.zeros((20, 12, 12), np.float32), r"\(images \* 255\).round\(\).astype\('uint8'\)"),
        (np.full((20, 12, 12, 3), 200, np.int64), r"images.astype\('uint8'\) makes bytes"),
        (np.full((20, 12, 12, 3), 300, np.int64), r"not int64 of shape \(20, 12, 12, 3\)\.$"),
        (np.full((20, 12, 12, 3), np.nan), r"not float64 of shape \(20, 12, 12, 3\)\.$"),
    ],
)
def test_an_npz_of_another_shape_or_type_is_refused_with_what_to_do(train, tmp_path, images, line):
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(20) % 2)
    done = train(*RUN)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert re.search(line, done.err.strip()), done.err
    assert "train.npz" in done.err


@pytest.mark.parametrize(
    "shape", [(20, 12, 13, 3), (20, 16, 16, 8), (20, 1, 30, 1), (20, 4, 4, 4), (20, 12, 12)]
)
def test_an_npz_with_its_channels_last_is_taken(tmp_path, shape):
    np.savez(tmp_path / "train.npz", images=np.zeros(shape, np.uint8), labels=np.arange(20) % 2)
    assert load_npz(tmp_path / "train.npz").images.shape == (*shape, 1)[:4]
