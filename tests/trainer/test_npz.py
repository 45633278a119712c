"""An .npz as a source of images: what is none is refused safely, and a class without an image is told."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.config import Data
from trainer.data import build_data
from trainer.datasets import load_npz
from trainer.errors import UserError


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
