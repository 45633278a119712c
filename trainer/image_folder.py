"""Images in folders, `<root>/<split>/<class>/<file>`, decoded once and kept as one array beside them.

The array lives under `<root>/.peakpoint/` and is named by a digest of the listing, so that a file that was
added, removed or changed makes a new one.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from filelock import FileLock
from PIL import Image, ImageOps
from rich.progress import Progress

from checkpointing.files import fsync_file
from checkpointing.terminal import Console
from trainer.errors import UserError

log = logging.getLogger("peakpoint")

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
T = TypeVar("T")
_CHUNK = 1024  # images decoded between two writes
_MAP_BYTES = 2**30  # above this the array is mapped, not read


class Header(NamedTuple):
    """What the head of an image file says of it."""

    size: tuple[int, int]
    grey: bool


def load(root: Path, split: str, image_size: int | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Images (N, H, W, C) uint8, labels (N,) int64 and the names of the classes, in order of path.

    With `image_size` the shorter side is resized to it and the centre is cut out; without it all images
    must have one size. There is one channel when every file is grey, three otherwise.
    Raises UserError that names the file or folder at fault.
    """
    classes = _classes(root, "train")
    if split != "train" and (found := _classes(root, split)) != classes:
        odd = sorted(set(found) ^ set(classes))[0]
        where = split if odd in found else "train"
        raise UserError(
            f"Class {odd!r} is only in {root / where}: {split} must have the class folders of train."
        )
    files = [path for name in classes for path in _files(root / split / name)]
    index = {name: label for label, name in enumerate(classes)}
    labels = np.array([index[path.parent.name] for path in files], dtype=np.int64)
    return _cached(root, split, files, image_size), labels, classes


def _classes(root: Path, split: str) -> tuple[str, ...]:
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: set data.root to a folder with train/ and test/ in it.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders: images belong in {folder}/<class>/.")
    return tuple(names)


def _files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
    if not files:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    return files


def _cached(root: Path, split: str, files: list[Path], image_size: int | None) -> np.ndarray:
    """The decoded array, from the cache when the listing is unchanged, else decoded and put there."""
    folder = root / ".peakpoint"
    family = f"{split}-{image_size or 'native'}"
    target = folder / f"{family}-{_digest(root, files, image_size)}.npy"
    images = _open(target)
    if images is not None:
        return images
    shape = _shape(files, image_size)
    try:
        folder.mkdir(exist_ok=True)
        # One process decodes; the others of a sweep wait and read.
        with FileLock(folder / f"{family}.lock"):
            images = _open(target)
            if images is None:
                _write(target, files, shape)
                for old in (*folder.glob(f"{family}-*.npy"), *folder.glob(f"{family}-*.tmp")):
                    if old != target:
                        old.unlink(missing_ok=True)
                images = _open(target)
    except OSError as error:
        log.warning("%s cannot hold the decoded images (%s): they are decoded again each run.", folder, error)
    if images is None:
        images = np.concatenate(list(_decode(files, shape)))
    return images


def _digest(root: Path, files: list[Path], image_size: int | None) -> str:
    listing: list[object] = [image_size]
    for path in files:
        stat = path.stat()
        listing.append([str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _open(path: Path) -> np.ndarray | None:
    """The array in `path`, or None where there is none that can be read."""
    try:
        # Mapped copy-on-write, because torch warns of arrays that cannot be written; the file stays as it is.
        images: np.ndarray = np.load(
            path, "c" if path.stat().st_size > _MAP_BYTES else None, allow_pickle=False
        )
    except (OSError, ValueError, EOFError):
        return None
    return images


def _write(target: Path, files: list[Path], shape: tuple[int, int, int]) -> None:
    """Decode into a temporary file and give it its name once it is whole.

    Written in plain chunks: a full disk is then an OSError, where a mapped file would kill the process.
    """
    staged = target.with_suffix(".tmp")
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *shape)}
    try:
        with staged.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for chunk in _decode(files, shape):
                stream.write(chunk.data)
            stream.flush()
            fsync_file(stream.fileno(), target)
        staged.replace(target)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def _shape(files: list[Path], image_size: int | None) -> tuple[int, int, int]:
    """(H, W, C) of the decoded images, from the heads of all files."""
    headers = [header for part in _parallel(_header, files, "Reading image sizes") for header in part]
    channels = 1 if all(header.grey for header in headers) else 3
    if image_size is not None:
        return image_size, image_size, channels
    width, height = headers[0].size
    for path, header in zip(files, headers, strict=True):
        if header.size != headers[0].size:
            raise UserError(
                f"{path} is {header.size[0]}x{header.size[1]} pixels, but {files[0].name} is "
                f"{width}x{height}: set data.image_size to bring all images to one size."
            )
    return height, width, channels


def _header(path: Path) -> Header:
    with _readable(path), Image.open(path) as image:
        return Header(image.size, image.mode == "L")


def _decode(files: list[Path], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Chunks (n, H, W, C) of the decoded files, in order."""
    height, width, channels = shape
    mode = "L" if channels == 1 else "RGB"

    def decode(path: Path) -> np.ndarray:
        with _readable(path), Image.open(path) as image:
            # Only JPEG heeds this: decode at a fraction of the size, still twice what is needed.
            image.draft(mode, (2 * width, 2 * height))
            pixels = image.convert(mode)
            if pixels.size != (width, height):
                pixels = ImageOps.fit(pixels, (width, height), Image.Resampling.BILINEAR)
            return np.asarray(pixels).reshape(shape)

    for part in _parallel(decode, files, "Decoding images"):
        yield np.stack(part)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # PIL's readers raise almost anything on damaged files
        raise UserError(f"{path} cannot be read as an image: {' '.join(str(error).split())}.") from error


def _parallel(function: Callable[[Path], T], files: list[Path], title: str) -> Iterator[list[T]]:
    """Results of `function` in chunks and in order; PIL decodes without the lock of the interpreter."""
    console = Console(stderr=True)
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task(title, total=len(files))
        for start in range(0, len(files), _CHUNK):
            part = list(pool.map(function, files[start : start + _CHUNK]))
            progress.advance(task, len(part))
            yield part
