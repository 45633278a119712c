"""With TEST_ALL=1, on a machine that can run every test, a test that is skipped fails."""

import os
from collections.abc import Generator

import pytest

NO_CUDA = "no CUDA device"
HAS_CUDA = "there is a CUDA device"
NO_SLURM = "no SLURM"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of a test, and of its fixtures."""
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of a whole file, as importorskip does."""
    report = yield
    _fail_if_skipped(report)
    return report


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("TEST_ALL") != "1" or not report.skipped or hasattr(report, "wasxfail"):
        return
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if why.removeprefix("Skipped: ") not in (NO_CUDA, HAS_CUDA, NO_SLURM):
        report.outcome = "failed"
        report.longrepr = f"{why}. With TEST_ALL=1 every test must run: install what it needs."
