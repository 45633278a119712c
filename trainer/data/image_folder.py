"""Images in folders, `<root>/<split>/<class>/<file>`, decoded once and kept as one array beside them.

The array lives under `<root>/.peakpoint/` and is named by a digest of the listing, so that a file that was
added, removed or changed makes a new one. Under a root that only a record names no such folder is made.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stat import S_ISREG
from typing import TypeVar

import numpy as np
import torch
from filelock import FileLock
from rich.progress import Progress

from peakpoint.base.errors import UserError
from peakpoint.base.files import fsync_file
from peakpoint.base.terminal import Console
from peakpoint.trainer.data.images import Images
from peakpoint.trainer.data.pixels import RULES, decode, header
from peakpoint.trainer.data.settings import may_write

log = logging.getLogger("peakpoint")

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
T = TypeVar("T")
_CHUNK = 1024  # images decoded between two writes
_MAP_BYTES = 2**30  # above this the array is mapped, not read


def load(root: Path, split: str, image_size: int | None) -> Images:
    """Return all images of a split, in order of path.

    Images in subfolders of a class are of that class; other files are passed over with a warning.
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
    loose = [p for p in (root / split).iterdir() if not p.is_dir() and p.name[0] != "."]
    _warn_unread(loose, "images belong in the folder of a class")
    groups = [_files(root / split / name) for name in classes]
    files = [path for group in groups for path in group]
    labels = np.repeat(np.arange(len(classes), dtype=np.int64), [len(group) for group in groups])
    images = _cached(root, split, files, image_size)
    return Images(torch.from_numpy(images), torch.from_numpy(labels), classes)


def _classes(root: Path, split: str) -> tuple[str, ...]:
    folder = root / split
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: set data.root to a folder with train/ and test/ in it.")
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders: images belong in {folder}/<class>/.")
    return tuple(names)


def _files(folder: Path) -> list[Path]:
    """Return the images under the folder of a class, in its subfolders too; warns of other files."""
    images: list[Path] = []
    others: list[Path] = []
    seen = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        place = Path(here).resolve()
        if place in seen:
            raise UserError(f"{here} leads to a folder that is read already: remove the link.")
        seen.add(place)
        folders[:] = [name for name in folders if name[0] != "."]
        for path in (Path(here, name) for name in names if name[0] != "."):
            (images if path.suffix.lower() in EXTENSIONS else others).append(path)
    if not images:
        raise UserError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))}).")
    _warn_unread(others, f"images end in {', '.join(sorted(EXTENSIONS))}")
    return sorted(images)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror or error}.") from None


def _warn_unread(others: list[Path], reason: str) -> None:
    if others:
        count = f" and {len(others) - 1} more" if len(others) > 1 else ""
        log.warning("%s%s not read: %s", min(others), f"{count} are" if count else " is", reason)


def _cached(root: Path, split: str, files: list[Path], image_size: int | None) -> np.ndarray:
    """Return the decoded array, from the cache when the listing is unchanged, else decoded and put there."""
    folder = root / ".peakpoint"
    family = f"{split}-{image_size or 'native'}"
    target = folder / f"{family}-{_digest(root, files, image_size)}.npy"
    images = _open(target)
    if images is not None:
        return images
    shape = _shape(files, image_size)
    if may_write(root) or (folder.is_dir() and not folder.is_symlink()):
        try:
            folder.mkdir(exist_ok=True)
            # One process decodes; the others of a sweep wait and read.
            with FileLock(folder / f"{family}.lock"):
                if _open(target) is None:
                    _write(target, files, shape)
                    for old in (*folder.glob(f"{family}-*.npy"), *folder.glob(f"{family}-*.tmp")):
                        if old != target:
                            old.unlink(missing_ok=True)
                images = _open(target)
        except OSError as error:
            log.warning(
                "%s cannot hold the decoded images (%s): they are decoded again each run.", folder, error
            )
    else:
        log.info(
            "only the record of the run names %s, so the decoded images are not kept there: "
            "add data.root to the command to keep them",
            root,
        )
    return np.concatenate(list(_decode(files, shape))) if images is None else images


def _digest(root: Path, files: list[Path], image_size: int | None) -> str:
    listing: list[object] = [RULES, image_size]
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
        if not S_ISREG(stat.st_mode):
            raise UserError(f"{path} is no file: remove it.")
        listing.append([str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16]


def _open(path: Path) -> np.ndarray | None:
    """Return the array in `path`, or None where there is none that can be read."""
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
    """Return (H, W, C) of the decoded images, from the heads of all files."""
    headers = [found for part in _parallel(header, files, "Reading image sizes") for found in part]
    channels = 1 if all(found.grey for found in headers) else 3
    if image_size is not None:
        return image_size, image_size, channels
    width, height = headers[0].size
    for path, found in zip(files, headers, strict=True):
        if found.size != headers[0].size:
            raise UserError(
                f"{path} is {found.size[0]}x{found.size[1]} pixels, but {files[0].name} is "
                f"{width}x{height}: set data.image_size to bring all images to one size."
            )
    return height, width, channels


def _decode(files: list[Path], shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Yield chunks (n, H, W, C) of the decoded files, in order."""
    for part in _parallel(lambda path: decode(path, shape), files, "Decoding images"):
        yield np.stack(part)


def _parallel(function: Callable[[Path], T], files: list[Path], title: str) -> Iterator[list[T]]:
    """Yield results of `function` in chunks and in order; PIL decodes without the lock of the interpreter."""
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
