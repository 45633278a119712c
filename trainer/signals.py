"""The signals that end a run: Ctrl-C, and what terminals and schedulers send before they kill."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

Handler = Callable[[int, FrameType | None], None]


class Ended(KeyboardInterrupt):
    """A signal came where there is nothing to save, or a second Ctrl-C."""

    def __init__(self, number: int) -> None:
        self.number = signal.Signals(number)
        super().__init__(self.number.name)


_received: list[int] = []
"""Signals that raised Ended, also where a library caught it."""


def end_at_once(number: int, _frame: FrameType | None) -> None:
    """Raise Ended, as Python's own handler of Ctrl-C raises KeyboardInterrupt."""
    _received.append(number)
    raise Ended(number)


def check() -> None:
    """Raise Ended again for a signal whose exception a library caught."""
    if _received:
        raise Ended(_received[0])


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Have `handler` called for each signal that ends a run.

    A signal that this process ignores (nohup ignores SIGHUP) or that has another handler is left alone.
    """
    ours = (signal.SIG_DFL, signal.default_int_handler, end_at_once)
    taken = {n: before for n in NUMBERS if (before := signal.getsignal(n)) in ours}
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, before in taken.items():
            signal.signal(number, before)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Have a signal raise Ended, also where a library makes another error of it."""
    _received.clear()
    with handled(end_at_once):
        try:
            yield
        except Exception:
            check()
            raise


@contextmanager
def deferred() -> Iterator[None]:
    """Delay a signal until the end, which raises Ended; a second Ctrl-C raises it at once.

    For imports: an interrupted one may print a traceback, or leave a module half loaded.
    """
    waiting: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        waiting.append(number)
        if len(waiting) > 1 and number == signal.SIGINT:
            raise Ended(number)

    with handled(note):
        yield
    if waiting:
        raise Ended(waiting[0])
