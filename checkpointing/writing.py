"""A directory opened for writing: its run, its lock and its store, shared by all of this process."""

import secrets
import threading
import weakref
from contextlib import ExitStack
from pathlib import Path

from checkpointing import finding, store
from checkpointing.lock import one_writer
from checkpointing.store import Store

RUN = "library-"
"""How the runs of the library begin, so that a trainer's in the same directory are left alone."""


class Opened:
    """The store of a directory, locked against other processes until nobody refers to this any more."""

    def __init__(self, root: Path) -> None:
        with ExitStack() as stack:
            stack.enter_context(one_writer(root))
            self.store = Store(root, run_in(root))
            weakref.finalize(self, stack.pop_all().close)


_OPENED: "weakref.WeakValueDictionary[Path, Opened]" = weakref.WeakValueDictionary()
_ONE_AT_A_TIME = threading.Lock()


def opened(root: Path) -> Opened:
    """Open a directory that exists, once a process: two managers of one directory share its numbering.

    Raises BusyError, naming the holder, when another process has it open.
    """
    with _ONE_AT_A_TIME:
        key = root.resolve()
        found = _OPENED.get(key)
        if found is None:
            found = _OPENED[key] = Opened(root)
        return found


def run_in(root: Path) -> str:
    """The run whose checkpoints lie in a directory, or a new one."""
    runs = [m.run for m in [*store.manifests(root), *finding.releases(root)] if m.run.startswith(RUN)]
    return runs[-1] if runs else RUN + secrets.token_hex(8)
