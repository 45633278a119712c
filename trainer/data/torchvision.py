"""Datasets that torchvision knows: found under `data.root`, or downloaded there and checked."""

import contextlib
import io
import socket
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from peakpoint.base.errors import UserError
from peakpoint.models._torchvision import torchvision
from peakpoint.trainer.data.images import Images
from peakpoint.trainer.data.settings import may_write

_STALL_S = 30.0  # how long a host may take to answer, and a download stand still
_INSTEAD = "data=digits, data=synthetic, data=npz and data=image_folder need no download"
_DAMAGE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, zlib.error)


def load(root: Path, class_name: str, name: str, split: str) -> Images:
    """Return all images of a split of `torchvision.datasets.<class_name>`, which is `name` in messages.

    Raises UserError when the files are damaged, or absent where there is no network.
    """
    dataset_class = getattr(torchvision().datasets, class_name)
    with _quiet():
        dataset = _read(dataset_class, root, split)
        if dataset is None:
            _download(dataset_class, root, name)
            dataset = _read(dataset_class, root, split)
    images = torch.as_tensor(np.ascontiguousarray(dataset.data))
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    return Images(images if images.ndim == 4 else images[..., None], labels, tuple(dataset.classes))


def _read(dataset_class: Any, root: Path, split: str) -> Any:
    """Return the dataset, or None where a download can bring it. Raises UserError for damaged files."""
    try:
        return dataset_class(str(root), train=split == "train", download=False)
    except _DAMAGE as error:
        # torchvision's words for files that are absent or unlike their checksum.
        if isinstance(error, RuntimeError) and "not found" in str(error):
            return None
        raise UserError(
            f"data.root={root} holds damaged files ({_line(error)}): remove them and run again."
        ) from error


def _download(dataset_class: Any, root: Path, name: str) -> None:
    """Fetch the dataset into `root`; of several processes one fetches and the others wait."""
    lacking = f"data.root={root} does not hold {name} whole and undamaged"
    if not may_write(root):
        raise UserError(
            f"{lacking}, and only a record names this folder: nothing "
            "is downloaded to it until the command does (data.root=DIR, or --data-root DIR of a measurement)."
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_S)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            dataset_class(str(root), download=True)
    except _DAMAGE as error:
        raise UserError(
            f"{lacking}, and its download failed ({_line(error)}): "
            f"run again, copy the dataset there, or choose another ({_INSTEAD})."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Swallow what torchvision prints; its progress bar stays where someone can see it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if not sys.stderr.isatty():
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
