"""What holds for every test. `MOEFLEET_NO_SKIPS=1` (set by `make test`) turns a skip into a failure: in CI everything that a test
needs is installed, so a skip there would hide a gap. Only `gpu` tests may skip, and they say so.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("moefleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("moefleet")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    excused = item.get_closest_marker("gpu") or hasattr(report, "wasxfail")
    if report.skipped and os.environ.get("MOEFLEET_NO_SKIPS") == "1" and not excused:
        report.outcome = "failed"
        report.longrepr = f"skipped where nothing may be missing: {report.longrepr}"
    return report
