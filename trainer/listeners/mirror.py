"""checkpoint.mirror: what the configuration says about copies in a remote place, put to work for one run."""

import contextlib
import logging
from collections.abc import Iterator

from peakpoint.checkpointing.events import Saved
from peakpoint.checkpointing.remote.background import Mirror, Settings
from peakpoint.checkpointing.remote.client import Remote
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.config import schema
from peakpoint.trainer.listeners.events import Listener, Published

log = logging.getLogger("peakpoint")


class _Wakes:
    """Tells the mirror that there is more."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def __call__(self, event: Published) -> None:
        if isinstance(event, Saved):
            self._mirror.wake()

    def close(self) -> None:
        """Nothing: the mirror ends after the record of the run."""


def place(settings: schema.Mirror) -> Remote | None:
    """The remote place, which is not reached for yet. Raises CheckpointError when it cannot be one."""
    if settings.url is None:
        return None
    return Remote(settings.url, timeout_s=settings.timeout_s, key="checkpoint.mirror.url")


@contextlib.contextmanager
def mirror(settings: schema.Mirror, remote: Remote | None, target: Store) -> Iterator[list[Listener]]:
    """Copies what is saved within, and waits at the end for what is left, as the settings say."""
    if remote is None:
        yield []
        return
    options = Settings(
        what=frozenset(settings.what),
        keep=settings.keep,
        queue=settings.queue,
        wait_s=settings.wait_s,
    )
    copies = Mirror(target.root, target.run, remote, options)
    log.info("copies of %s go to %s", ", ".join(settings.what) or "nothing", copies.url)
    copies.start()
    try:
        yield [_Wakes(copies)]
    finally:
        copies.close()
