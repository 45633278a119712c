"""Background writing: at most one save is in flight, so memory holds at most one snapshot."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from peakpoint.base.threads import pool
from peakpoint.checkpointing.policy import MILESTONE, Policy
from peakpoint.checkpointing.state.snapshot import Snapshot
from peakpoint.checkpointing.storage.manifest import Manifest


@dataclass(frozen=True)
class Job:
    """A snapshot, the roles that it is to play, and the policies as they were at that moment.

    The writer's thread asks them what to keep: the living ones may already count on a later save.
    """

    snapshot: Snapshot
    roles: tuple[Manifest, ...]
    policies: dict[str, Policy]
    started: float
    stall_s: float

    @property
    def milestones(self) -> tuple[Manifest, ...]:
        """The roles that no later moment plays again."""
        return tuple(role for role in self.roles if role.tier == MILESTONE)


class Writer:
    """Does one piece of work at a time, on a thread or, with background=False, at once."""

    def __init__(self, *, background: bool) -> None:
        self._pool = pool("checkpoint-writer") if background else None
        self._flying: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Wait for the work in flight, then start this. It must keep its errors to itself."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._flying = self._pool.submit(work)

    @property
    def busy(self) -> bool:
        """Whether work is in flight."""
        return self._flying is not None and not self._flying.done()

    def wait(self) -> None:
        """Return once nothing is in flight."""
        if self._flying is not None:
            flying, self._flying = self._flying, None
            flying.result()

    def close(self) -> None:
        """Wait, and end the thread."""
        self.wait()
        if self._pool is not None:
            self._pool.shutdown()
