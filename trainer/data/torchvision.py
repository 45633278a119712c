"""Datasets that torchvision knows: found under `data.root`, or downloaded there and checked."""

import contextlib
import io
import socket
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from peakpoint.base.errors import UserError
from peakpoint.models._torchvision import torchvision
from peakpoint.trainer.data import roots

_ANSWER_S = 15.0  # how long a host may take to answer before the network counts as absent
_STALL_S = 60.0  # how long a download may stand still
_INSTEAD = "data=digits, data=synthetic, data=npz and data=image_folder need no download"
_DAMAGE = (RuntimeError, OSError, ValueError, AssertionError, EOFError, zlib.error)


def load(root: Path, class_name: str, name: str, split: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, H, W, C) uint8, labels (N,) int64 and class names of `torchvision.datasets.<class_name>`.

    Raises UserError when the files are damaged, or absent where there is no network.
    """
    dataset_class = getattr(torchvision().datasets, class_name)
    with _quiet():
        try:
            dataset = dataset_class(str(root), train=split == "train", download=False)
        except _DAMAGE as error:
            # torchvision's words for files that are absent or unlike their checksum: a download cures both.
            if not (isinstance(error, RuntimeError) and "not found" in str(error)):
                raise _damaged(root, error) from error
            _download(dataset_class, root, name)
            dataset = _read(dataset_class, root, split)
    images = torch.as_tensor(np.ascontiguousarray(dataset.data))
    labels = torch.as_tensor(dataset.targets, dtype=torch.int64)
    return images if images.ndim == 4 else images[..., None], labels, tuple(dataset.classes)


def _read(dataset_class: Any, root: Path, split: str) -> Any:
    try:
        return dataset_class(str(root), train=split == "train", download=False)
    except _DAMAGE as error:
        raise _damaged(root, error) from error


def _damaged(root: Path, error: Exception) -> UserError:
    return UserError(f"data.root={root} holds damaged files ({_line(error)}): remove them and run again.")


def _download(dataset_class: Any, root: Path, name: str) -> None:
    """Fetch the dataset into `root`; of several processes one fetches and the others wait."""
    if not roots.may_write(root):
        raise UserError(
            f"{root} does not hold {name} whole and undamaged, and only a record names this folder: nothing "
            "is downloaded to it until the command does (data.root=DIR, or --data-root DIR of a measurement)."
        )
    urls = getattr(dataset_class, "mirrors", None) or [dataset_class.url]
    if not any(_answers(url) for url in urls):
        raise UserError(
            f"data.root={root} does not hold {name} whole and undamaged, and {urls[0]} cannot be reached: "
            f"copy the dataset there, or choose another ({_INSTEAD})."
        )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALL_S)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".download.lock"):
            dataset_class(str(root), download=True)
    except _DAMAGE as error:
        raise UserError(
            f"The download of {name} to data.root={root} failed ({_line(error)}): "
            f"run again, or choose another dataset ({_INSTEAD})."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _answers(url: str) -> bool:
    """Whether the host of `url` answers. In a thread, because looking up a name has no time limit."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            request = urllib.request.Request(url, method="HEAD")
            try:
                urllib.request.urlopen(request, timeout=_ANSWER_S).close()
            except urllib.error.HTTPError as error:
                error.close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)
    return answered.is_set()


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
