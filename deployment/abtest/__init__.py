"""Releases compared on users: who sees which, what came of it, and when that is enough to decide."""

from peakpoint.deployment.abtest.exposure import Log, Study, design, study
from peakpoint.deployment.abtest.ratio import RatioCheck, sample_ratio
from peakpoint.deployment.abtest.reporting import report
from peakpoint.deployment.abtest.router import Router
from peakpoint.deployment.abtest.sequential import Rule, Verdict, decide
from peakpoint.deployment.selection.intervals import Comparison, Sample, compare

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
