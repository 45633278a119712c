"""Calls of fsspec's file systems that end when nothing moves."""

import asyncio
from typing import Any

SLOWEST = 100_000
"""Bytes a second below which a transfer counts as stalled."""


def call(fs: Any, name: str, *args: Any, timeout_s: float, size: int = 0, **options: Any) -> Any:
    """Return what a method of a file system returns that moves up to `size` bytes.

    Raises TimeoutError when nothing moved for twice `timeout_s` and the time of `size` bytes. The timeouts of
    the clients do not cover every wait: aiohttp waits without an end for a server's `100 Continue` before an
    upload, and while a body is being sent.
    """
    if not getattr(fs, "async_impl", False):
        return getattr(fs, name)(*args, **options)
    from fsspec.asyn import sync
    from fsspec.callbacks import Callback

    limit = 2 * timeout_s + size / SLOWEST
    moved = Callback()
    if name == "put_file":
        options["callback"] = moved

    async def bounded() -> Any:
        task = asyncio.ensure_future(getattr(fs, f"_{name}")(*args, **options))
        while True:
            before = moved.value
            done, _ = await asyncio.wait({task}, timeout=limit)
            if done:
                return task.result()
            if moved.value == before:
                task.cancel()
                raise TimeoutError(f"nothing moved for {limit:.0f} s")

    return sync(fs.loop, bounded)
