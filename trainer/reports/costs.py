"""What the network at a peak costs, in bytes and in multiply-accumulates (MACs), as its run recorded it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peakpoint.trainer.reports import run_record
from peakpoint.trainer.reports.history import History, PeakRow


def stored(history: History, peak: PeakRow) -> int | None:
    """Return the bytes of the weights at a peak, as its test recorded them; None where it was not tested."""
    of_step = [test for test in history.tests.values() if test["step"] == peak.best_step]
    return next((test["bytes"] for test in of_step if test["bytes"]), None)


def macs(run: Path, history: History, peak: PeakRow) -> float | None:
    """Return the MACs for an image of the weights that are not zero at a peak.

    None where the record has none, as that of earlier versions. Raises UserError.
    """
    known = run_record.read_run(run).get(run_record.MACS)
    counts = known if isinstance(known, Mapping) else {}
    if not counts or not all(_is_count(count) for count in counts.values()):
        return None
    [layers] = [e.layers or {} for e in history.evals if e.step == peak.best_step]
    found = sum(count * (1 - layers.get(name, 0.0)) for name, count in counts.items())
    return found if math.isfinite(found) and found > 0 else None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 60
