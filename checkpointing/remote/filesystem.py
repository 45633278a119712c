"""fsspec's file systems: opened with our timeouts, and called so that no call waits for ever."""

from typing import Any

from peakpoint.checkpointing.remote.urls import S3

LISTING = 10 << 20
"""Bytes that stand for a list, or for a copy within the place, in the time that it may take."""
SLOWEST = 100_000
"""Bytes a second; a slower transfer counts as stalled."""


def opened(url: str, protocol: str, timeout_s: float) -> Any:
    """The file system of a URL, not cached, whose waits for an answer end after `timeout_s` seconds."""
    import fsspec

    settings: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in S3:
        settings |= {
            "config_kwargs": {
                "connect_timeout": timeout_s,
                "read_timeout": timeout_s,
                "retries": {"mode": "standard", "total_max_attempts": 2},
            },
            "default_block_size": 16 << 20,
            "max_concurrency": 2,  # parts in memory
        }
    elif protocol in ("file", "local"):
        settings = {"auto_mkdir": True, "skip_instance_cache": True}
    fs, _ = fsspec.url_to_fs(url, **settings)
    if protocol in S3:
        fs.retries = 1  # its own retries come on top of botocore's
    return fs


def bounded_call(fs: Any, name: str, *args: Any, size: int, timeout_s: float, **options: Any) -> Any:
    """Call a method that moves up to `size` bytes. Raises TimeoutError when nothing moves for too long.

    The clients' timeouts do not cover every wait: aiohttp waits without an end for a server that is to say
    `100 Continue` before an upload, and while a body is being sent.
    """
    if not getattr(fs, "async_impl", False):
        return getattr(fs, name)(*args, **options)
    import asyncio

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
