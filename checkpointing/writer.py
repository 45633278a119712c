"""Background writing: at most one save is in flight, so memory holds at most one snapshot."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Writer:
    """Runs one job at a time, on a thread or, with background=False, at once."""

    def __init__(self, *, background: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint-writer") if background else None
        self._flying: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Wait for the job in flight, then start this one. A job must keep its errors to itself."""
        self.wait()
        if self._pool is None:
            job()
        else:
            self._flying = self._pool.submit(job)

    @property
    def busy(self) -> bool:
        """Whether a job is in flight."""
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
