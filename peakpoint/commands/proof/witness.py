"""A plugin of the trainer for prove-resume: records every training batch, and kills the run on request.

It is imported only by the runs that prove-resume starts, which name it in `plugins` and set the variables.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peakpoint.checkpointing.state.witness import digest_of
from peakpoint.trainer.data.pipeline import DataModule
from peakpoint.trainer.data.settings import note_root

BATCHES, KILL_AFTER = "PEAKPOINT_WITNESS_BATCHES", "PEAKPOINT_WITNESS_KILL_AFTER"
ROOT = "PEAKPOINT_WITNESS_ROOT"
"""Variable with the data directory that the record of the run names."""


def watch(path: Path, kill_after: int | None) -> None:
    """Record each training batch in `path`; after `kill_after` of them, kill the process with SIGKILL."""
    original = DataModule.train_batches
    count = 0

    def train_batches(self: DataModule, epoch: int, start: int = 0) -> Iterator[Any]:
        nonlocal count
        for number, (images, labels) in enumerate(original(self, epoch, start), start):
            if count == kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            digests = {name: digest_of([(name, t)]) for name, t in (("images", images), ("labels", labels))}
            fact = {"epoch": epoch, "batch": number, **digests}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fact) + "\n")
            yield images, labels

    DataModule.train_batches = train_batches  # type: ignore[method-assign]


if BATCHES in os.environ:
    after = os.environ.get(KILL_AFTER)
    watch(Path(os.environ[BATCHES]), int(after) if after else None)
note_root(os.environ.get(ROOT, ""), by_record=True)
