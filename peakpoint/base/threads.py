"""Threads beside the training, each limited to one OpenMP thread.

Once a process has more OpenMP threads than cores, libgomp sleeps at its barriers instead of spinning, which
slows each training step on the CPU for as long as those threads live.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import torch


class AtOnce(Executor):
    """Does each piece of work in the thread that submits it."""

    def submit(self, work: Callable[..., Any], /, *args: Any) -> Future[Any]:  # type: ignore[override]
        """Do the work; returns its result, or raises what it raises."""
        done: Future[Any] = Future()
        done.set_result(work(*args))
        return done


def pool(name: str) -> ThreadPoolExecutor:
    """Return an executor of one thread, which does one piece of work after another."""
    return ThreadPoolExecutor(1, name, initializer=_alone)


def thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Return a thread, not yet started, that does not keep the process from ending."""

    def run() -> None:
        _alone()
        work()

    return threading.Thread(target=run, name=name, daemon=True)


def _alone() -> None:
    """Make torch compute on this thread alone."""
    # A thread's setting is also the default of threads that start later: another thread restores it.
    others = torch.get_num_threads()
    torch.set_num_threads(1)
    after = threading.Thread(target=torch.set_num_threads, args=(others,))
    after.start()
    after.join()
