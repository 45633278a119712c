"""Releases compared on users: who sees which, what came of it, and when that is enough to decide."""

from checkpointing.abtest.exposure import Log, Study, design, study
from checkpointing.abtest.outcome import Comparison, Sample, compare
from checkpointing.abtest.ratio import RatioCheck, sample_ratio
from checkpointing.abtest.reporting import report
from checkpointing.abtest.router import Router
from checkpointing.abtest.sequential import Rule, Verdict, decide

__all__ = [
    "Comparison",
    "Log",
    "RatioCheck",
    "Router",
    "Rule",
    "Sample",
    "Study",
    "Verdict",
    "compare",
    "decide",
    "design",
    "report",
    "sample_ratio",
    "study",
]
