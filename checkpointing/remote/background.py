"""Uploads a run's checkpoints to its mirror while it trains, on a thread of their own.

Training never waits for the mirror, and no failure there ends it. What to upload is computed anew each time,
as the difference of here and there: no queue must survive a crash, and none grows while the mirror is away.
"""

import contextlib
import logging
import random
import threading
from collections import Counter
from collections.abc import Collection

from peakpoint.base.errors import CheckpointError
from peakpoint.base.text import in_short
from peakpoint.base.threads import thread
from peakpoint.checkpointing.remote.client import Remote, RemoteError
from peakpoint.checkpointing.remote.upload import RemoteRun, chosen
from peakpoint.checkpointing.storage import listing
from peakpoint.checkpointing.storage.listing import Index
from peakpoint.checkpointing.storage.manifest import TIERS, Manifest
from peakpoint.checkpointing.storage.store import Store

log = logging.getLogger("peakpoint")

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 120.0
"""First and longest pause between attempts in seconds."""
QUIET_WAIT_S = 2.0
"""Seconds above which a wait is announced."""


class Mirror:
    """Uploads what a run keeps in its store, from `start` to `close`; call `wake` after a save.

    `what` names the tiers, roles and policies to upload. `keep`: checkpoints of each role that stay in the
    mirror beside those that are here, None for all; `queue`: checkpoints that may wait at a time; `wait_s`:
    seconds that the end of a run waits for the rest.
    """

    def __init__(
        self,
        store: Store,
        remote: Remote,
        *,
        what: Collection[str],
        keep: int | None,
        queue: int,
        wait_s: float,
    ) -> None:
        self._store, self._remote = store, remote
        self._what, self._keep, self._queue, self._wait_s = what, keep, queue, wait_s
        self._index = Index(store.root)
        self._there = RemoteRun(remote, store.run)
        self._opened = self._recorded = False
        self._wake, self._closing, self._over, self._done = (threading.Event() for _ in range(4))
        self._passed_over: set[tuple[str, str]] = set()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._trouble: str | None = None
        self._crowded = False
        self._thread = thread(self._work, "mirror")

    @property
    def url(self) -> str:
        """Return the folder of this run in the mirror."""
        return self._there.remote.url

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Look again for checkpoints to upload; returns at once."""
        self._wake.set()

    def close(self) -> None:
        """Upload the rest for at most `wait_s` seconds; warns of what is then missing."""
        self._closing.set()
        self._wake.set()
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the wait
            wait_s = self._wait_s
            # Not join(): interrupted, it takes the thread for dead (Python 3.11).
            if not self._done.wait(min(wait_s, QUIET_WAIT_S)) and wait_s > QUIET_WAIT_S:
                log.info("waiting for the mirror, %g s at most; Ctrl-C ends the wait", wait_s)
                self._done.wait(wait_s - QUIET_WAIT_S)
        self._over.set()
        if self._done.is_set():
            return
        left = self._missing()
        log.warning(
            "The mirror is not complete: %s. To continue: peakpoint push %s %s",
            f"{in_short([m.file for m in left]) if left else 'the record of the run is'} not uploaded yet",
            listing.run_of(self._store.root),
            self._remote.url,
        )

    def pending(self) -> list[Manifest]:
        """Return the checkpoints to upload: those that failed least often first, then the newest."""
        missing = self._missing()
        room = self._queue
        if len(missing) > room and not self._crowded:
            log.warning(
                "%d checkpoints wait for the mirror: the newest %d go first, the others after them.",
                len(missing),
                room,
            )
        self._crowded = len(missing) > room
        return sorted(missing[:room], key=lambda m: self._failures[_key(m)])

    def _missing(self) -> list[Manifest]:
        here = chosen(self._store.root, self._index.manifests(), self._what, self._store.run)
        return [m for m in reversed(here) if not self._there.holds(m) and _key(m) not in self._passed_over]

    def _here(self) -> set[str]:
        return {m.file for m in chosen(self._store.root, self._index.manifests(), TIERS)}

    def _work(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._over.is_set():
            last = self._closing.is_set()
            try:
                self._pass()
            except Exception as error:  # of any kind: it must not end the training
                self._warn(error)
                # Until the end of training, and once it has come, until the end of the wait.
                (self._over if last else self._closing).wait(random.uniform(0.5, 1) * pause)
                pause = min(2 * pause, LONGEST_PAUSE_S if not self._closing.is_set() else 5.0)
                continue
            pause = FIRST_PAUSE_S
            if self._trouble is not None and not self._over.is_set():
                log.info("mirror: %s works again; everything is uploaded", self.url)
                self._trouble = None
            if last:
                self._done.set()
                return
            self._wake.wait()
            self._wake.clear()

    def _warn(self, error: Exception) -> None:
        """Warn once, until uploads work again."""
        text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        if self._trouble is None and not self._over.is_set():
            log.warning("mirror: %s Training continues; the upload is repeated.", text)
        self._trouble = text

    def _pass(self) -> None:
        """Upload everything that is missing. Raises what the mirror refuses."""
        if not self._opened:
            self._there.open(listing.run_of(self._store.root.absolute()).name)
            self._there.sweep(self._here())
            self._opened = True
        pending = self.pending()
        if pending or not self._recorded or self._closing.is_set():  # it is of use with the checkpoints
            self._there.put_record(self._store.root)
            self._recorded = True
        while pending and not self._over.is_set():
            self._copy(pending[0])
            pending = self.pending()
        self._there.write_pointers()
        for file in self._there.delete_older(self._here(), self._keep):
            log.debug("mirror: %s is no longer kept in %s", file, self.url)

    def _copy(self, manifest: Manifest) -> None:
        try:
            self._there.put(self._store.root, manifest)
        except FileNotFoundError:  # retention let it go, as a rule, and it is not pending any more
            if (self._store.root / manifest.file).exists():
                self._failures[_key(manifest)] += 1
                raise
            return
        except RemoteError:
            self._failures[_key(manifest)] += 1
            raise
        except CheckpointError as error:
            self._passed_over.add(_key(manifest))
            log.warning("mirror: %s", error)
            return
        log.debug("mirror: %s is uploaded to %s", manifest.file, self.url)
        self._there.write_pointers()


def _key(manifest: Manifest) -> tuple[str, str]:
    """Return the key of an upload: another role is another file, as are other bytes."""
    return manifest.file, manifest.digest
