"""Steps of a scenario, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_e2e.kube import CommandError
from moefleet_faults import run
from moefleet_faults.scenario import read_all


class Site:
    kube = release = None

    async def do(self, step: Any) -> None:
        raise CommandError("kubectl drain node0 ended with 1: deadline exceeded")


async def test_a_step_that_fails_ends_the_cycle_and_not_the_count_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "look", lambda *_: None)
    scenario = next(s for s in read_all() if s.name == "long-run")
    site: Any = Site()
    recovery_s, lacking = await run._cycle(scenario, site, lambda said: None)
    assert recovery_s is None
    assert lacking == "scale failed: kubectl drain node0 ended with 1: deadline exceeded"
