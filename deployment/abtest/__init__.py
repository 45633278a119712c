"""A/B tests of releases: routing, the exposure log, the ratio checks and the stopping rule."""

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
