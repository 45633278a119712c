"""Objects in a place that fsspec reaches: put and read back, read within bounds, list, delete.

Uploads are read back and compared, no answer is larger than what was asked for, and every failure is a
RemoteError whose one line shows no password. The place is reached at the first use.
"""

import contextlib
import copy
import os
import posixpath
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from peakpoint.base import digests
from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import SMALL
from peakpoint.checkpointing.remote.bounded_call import call
from peakpoint.checkpointing.remote.urls import S3, check_url, shown

CHUNK = 8 << 20
LISTING = 10 << 20
"""Bytes assumed for the time limit of a list, or of a copy within the place."""
CHECKSUM = "FlexibleChecksumError"
"""Name of botocore's error for an object that does not match S3's own checksum."""
FOLDERS = ("file", "local")
STORES = (*S3, "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "memory")
"""Protocols without folders."""

T = TypeVar("T")


class RemoteError(CheckpointError):
    """A remote place could not be reached, refused, or answered with what was not asked for."""


class Missing(RemoteError):  # noqa: N818 (the name says what is wrong)
    """There is no such object."""


class Differs(RemoteError):  # noqa: N818 (the name says what is wrong)
    """An object reads differently from what was written."""


class Remote:
    """A folder in a remote place; `key` is a name below it, with `/` between its parts.

    An operation is tried `attempts` times, with growing pauses; each wait for the server's answer ends after
    `timeout_s` seconds. Raises CheckpointError for a URL that cannot be used; a place that is not there shows
    at the first operation. Every method raises RemoteError.
    """

    def __init__(self, url: str, *, timeout_s: float, attempts: int = 1, key: str = "URL") -> None:
        self._protocol = check_url(url, key)
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._connection: list[Any] = []  # one for this folder and all that are reached from it

    @property
    def url(self) -> str:
        """Return the place, for people."""
        return shown(self._url)

    def below(self, folder: str) -> "Remote":
        """Return a folder within this one."""
        return self._at(f"{self._url}/{folder}")

    def above(self, levels: int) -> "Remote":
        """Return the folder `levels` levels up."""
        return self._at("/".join(self._url.split("/")[:-levels]))

    def _at(self, url: str) -> "Remote":
        other = copy.copy(self)
        other._url = url
        return other

    @property
    def name(self) -> str:
        """Return the last part of the URL."""
        return self._url.rpartition("/")[2]

    @property
    def folder(self) -> Path | None:
        """Return the folder of this machine that the place is, None for a place elsewhere."""
        if self._protocol not in FOLDERS:
            return None
        from fsspec.implementations.local import LocalFileSystem

        return Path(LocalFileSystem._strip_protocol(self._url))

    def _connect(self) -> Any:
        """Return the file system of the place, not cached; its waits for an answer end after `timeout_s`."""
        if self._connection:
            return self._connection[0]
        import fsspec

        settings: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._protocol in S3:
            waits = {"connect_timeout": self._timeout_s, "read_timeout": self._timeout_s}
            settings |= {
                "config_kwargs": {**waits, "retries": {"mode": "standard", "total_max_attempts": 2}},
                "default_block_size": 16 << 20,
                "max_concurrency": 2,  # parts in memory
            }
        elif self._protocol in FOLDERS:
            settings["auto_mkdir"] = True
        fs, _ = fsspec.url_to_fs(self._url, **settings)
        if self._protocol in S3:
            fs.retries = 1  # its own retries come on top of botocore's
        self._connection.append(fs)
        return fs

    def _ask(self, fs: Any, name: str, *args: Any, **options: Any) -> Any:
        return call(fs, name, *args, timeout_s=self._timeout_s, **options)

    def _path(self, key: str) -> str:
        """Return a key as the file system has it."""
        path = str(self._connection[0]._strip_protocol(self._url)).rstrip("/")
        return f"{path}/{key}" if key else path

    def _do(self, what: str, key: str, work: Callable[[Any, str], T]) -> T:
        """Return `work(fs, path)`, tried again; its exceptions become a RemoteError that names the object."""
        for attempt in range(self._attempts):
            if attempt:
                time.sleep(random.uniform(0.5, 1) * 2 ** (attempt - 1))
            where = shown(f"{self._url}/{key}" if key else self._url)
            try:
                fs = self._connect()
                return work(fs, self._path(key))
            except RemoteError as error:
                failure = error
            except FileNotFoundError:
                kept_in = "file or folder" if self.folder else "object, or no such bucket"
                raise Missing(f"{where} could not be {what}: there is no such {kept_in}.") from None
            except Exception as error:  # what clients raise is theirs: botocore's, aiohttp's, paramiko's
                kind = Differs if type(error).__name__ == CHECKSUM else RemoteError
                failure = kind(f"{where} could not be {what}: {_reason(error)}.")
                if isinstance(error, PermissionError | NotImplementedError | ImportError):
                    break
        raise failure from None

    def find(self, under: str = "") -> dict[str, int]:
        """Return the keys below a folder, relative to it, with their sizes in bytes."""

        def work(fs: Any, path: str) -> dict[str, int]:
            fs.invalidate_cache()
            try:
                found = self._ask(fs, "find", path, detail=True, size=LISTING)
            except FileNotFoundError:
                return {}
            start = path.rstrip("/") + "/"
            return {
                name[len(start) :]: int(facts.get("size") or 0)
                for name, facts in found.items()
                if name.startswith(start)
            }

        return self._do("listed", under, work)

    def folders(self) -> list[str]:
        """Return the names of the folders right below."""

        def work(fs: Any, path: str) -> list[str]:
            fs.invalidate_cache()
            entries = self._ask(fs, "ls", path, detail=True, size=LISTING)
            return sorted(
                posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory"
            )

        try:
            return self._do("listed", "", work)
        except Missing:
            return []

    def read(self, key: str, limit: int = SMALL) -> bytes:
        """Return a small object. Raises RemoteError for one of more than `limit` bytes."""

        def work(fs: Any, path: str) -> bytes:
            data: bytes = self._ask(fs, "cat_file", path, start=0, end=limit + 1, size=limit)
            if len(data) > limit:
                raise ValueError(f"it has more than {limit} bytes")
            return data

        return self._do("read", key, work)

    def chunks(self, key: str, start: int, size: int) -> Iterator[bytes]:
        """Yield the bytes of an object from `start` to `size`, piece by piece."""
        while start < size:
            end = min(start + CHUNK, size)

            def work(fs: Any, path: str, start: int = start, end: int = end) -> bytes:
                data: bytes = self._ask(fs, "cat_file", path, start=start, end=end, size=end - start)
                if len(data) != end - start:
                    raise ValueError(f"{end - start} bytes were asked for and {len(data)} came")
                return data

            yield self._do("read", key, work)
            start = end

    def write(self, key: str, data: bytes) -> None:
        """Put a small object, and read it back."""

        def check() -> None:
            if self.read(key, max(len(data), 1)) != data:
                raise Differs(f"{shown(self._url)}/{key} reads differently from what was written.")

        self._put(key, lambda fs, to: self._ask(fs, "pipe_file", to, data, size=len(data)), check)

    def upload(self, key: str, file: Path, digest: str, size: int) -> None:
        """Put a file, and read it back: size and digest."""
        if not file.exists():
            raise FileNotFoundError(file)
        parts = {"chunksize": CHUNK} if self._protocol in S3 else {}
        most = min(size, 2 * CHUNK)
        self._put(
            key,
            lambda fs, to: self._ask(fs, "put_file", str(file), to, size=most, **parts),
            lambda: self.verify(key, digest, size),
        )

    def _put(self, key: str, put: Callable[[Any, str], object], check: Callable[[], None]) -> None:
        """Put an object until `check` does not raise Differs."""
        for attempt in range(self._attempts):
            self._do("written", key, lambda fs, path: self._in_place(fs, path, put))
            try:
                return check()
            except Differs:
                if attempt + 1 == self._attempts:
                    raise

    def _in_place(self, fs: Any, path: str, put: Callable[[Any, str], object]) -> None:
        """Put under the final name: stores do it in one step; a folder needs a rename for that."""
        if self._protocol in FOLDERS:
            folder, name = posixpath.split(path)
            staged = f"{folder}/.staged-{os.getpid()}-{name}"
            try:
                put(fs, staged)
                fs.mv(staged, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    fs.rm_file(staged)
                raise
            return
        if self._protocol not in STORES:
            self._ask(fs, "makedirs", posixpath.dirname(path), exist_ok=True)
        put(fs, path)

    def verify(self, key: str, digest: str, size: int) -> None:
        """Read an object to its end and compare."""
        found = self._do("read", key, lambda fs, path: self._ask(fs, "size", path))
        if found != size:
            raise Differs(f"{shown(self._url)}/{key} has {found} bytes there and {size} here.")
        reading = digests.hasher(digests.algorithm_of(digest))
        for chunk in self.chunks(key, 0, size):
            reading.update(chunk)
        if digests.named(reading) != digest:
            raise Differs(f"{shown(self._url)}/{key} reads differently from what was written.")

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the place, without sending it."""

        def work(fs: Any, path: str) -> None:
            self._ask(fs, "cp_file", self._path(source), path, size=LISTING)

        self._do("copied", target, work)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no failure."""
        try:
            self._do("deleted", key, lambda fs, path: self._ask(fs, "rm_file", path))
        except Missing:
            return


def _reason(error: Exception) -> str:
    """Return the reason of an error of any client, in a few words."""
    if isinstance(error, PermissionError):
        return f"it is not permitted ({shown(str(error)).rstrip('.') or 'no reason given'})"
    text = shown(getattr(error, "strerror", None) or str(error)).rstrip(".")
    if isinstance(error, TimeoutError) and not text:
        return "no answer in time"
    return text[:300] or type(error).__name__
