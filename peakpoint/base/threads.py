"""Threads beside the training, each with no OpenMP threads but itself.

Once a process has more of these than cores, libgomp no longer spins at its barriers, but sleeps: each step
that a training takes on the CPU is then slower, for as long as the thread lives that brought them.
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
    """One thread that does one piece of work after another."""
    return ThreadPoolExecutor(1, name, initializer=_alone)


def thread(work: Callable[[], None], name: str) -> threading.Thread:
    """A thread that does not keep the process from ending; still to be started."""

    def run() -> None:
        _alone()
        work()

    return threading.Thread(target=run, name=name, daemon=True)


def _alone() -> None:
    """Have torch compute on this thread alone."""
    # What a thread sets is its own, but also where those that start later begin: that is put back by one.
    others = torch.get_num_threads()
    torch.set_num_threads(1)
    after = threading.Thread(target=torch.set_num_threads, args=(others,))
    after.start()
    after.join()
