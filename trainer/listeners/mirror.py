"""checkpoint.mirror: the checkpoints of a run are uploaded while it trains."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from peakpoint.checkpointing.events import Saved
from peakpoint.checkpointing.remote.background import Mirror
from peakpoint.checkpointing.remote.client import Remote
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.store import Store
from peakpoint.trainer.config import schema
from peakpoint.trainer.listeners.events import Listener, Published

log = logging.getLogger("peakpoint")


class _Waking:
    """Wakes the mirror after each save."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def __call__(self, event: Published) -> None:
        if isinstance(event, Saved):
            self._mirror.wake()

    def close(self) -> None:
        """Do nothing: the mirror is closed after the record of the run."""


def connect(settings: schema.Mirror, directory: Path) -> Remote | None:
    """Return the mirror of the run in `directory`, not contacted yet, or None.

    Raises CheckpointError for a URL that cannot be used.
    """
    if settings.url is None:
        return None
    remote = Remote(settings.url, timeout_s=settings.timeout_s, key="checkpoint.mirror.url")
    if remote.folder:
        listing.check_outside(remote.folder / "run")
        listing.check_apart(remote.folder, directory)
    return remote


@contextlib.contextmanager
def uploading(settings: schema.Mirror, remote: Remote | None, target: Store) -> Iterator[list[Listener]]:
    """Upload what the run saves meanwhile, and wait at the end for the rest. Yields the listeners to add."""
    if remote is None:
        yield []
        return
    what, keep, queue = frozenset(settings.what), settings.keep, settings.queue
    mirror = Mirror(target, remote, what=what, keep=keep, queue=queue, wait_s=settings.wait_s)
    log.info("copies of %s go to %s", ", ".join(settings.what) or "nothing", mirror.url)
    mirror.start()
    try:
        yield [_Waking(mirror)]
    finally:
        mirror.close()
