"""A/B tests of releases: routing, the exposure log, the ratio checks and the stopping rule."""

from peakpoint.deployment.abtest.comparison import Comparison, Rule, Sample, Verdict, compare, decide
from peakpoint.deployment.abtest.exposure import Log, Study, design, study
from peakpoint.deployment.abtest.reporting import RatioCheck, report, sample_ratio
from peakpoint.deployment.abtest.router import Router

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
