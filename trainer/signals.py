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


def number_of(end: KeyboardInterrupt) -> signal.Signals:
    """The signal that ended what raised this."""
    return end.number if isinstance(end, Ended) else signal.SIGINT


def end_at_once(number: int, _frame: FrameType | None) -> None:
    """Raise Ended, as Python's own handler of Ctrl-C raises KeyboardInterrupt."""
    raise Ended(number)


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Within: `handler` is called for each signal that ends a run.

    What this process ignores (nohup ignores SIGHUP), or somebody else handles, is left as it is.
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
