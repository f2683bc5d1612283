"""Steps of a scenario, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from moefleet_e2e.kube import CommandError
from moefleet_faults import run
from moefleet_faults.scenario import read_all
from moefleet_faults.states import View

FLEET: dict[str, Any] = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def replica(uid: str, restarts: int) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "labels": {"moefleet.io/revision": "r"}},
        "spec": {},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"restartCount": restarts}],
        },
    }


class Site:
    kube = None
    release = SimpleNamespace(namespace="system")

    async def do(self, step: Any) -> None:
        raise CommandError("kubectl drain node0 ended with 1: deadline exceeded")


async def test_what_began_again_after_an_earlier_kill_is_no_recovery_from_the_last_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = 0
    looks = 0

    def look(*_: Any) -> View:
        """Each kill is followed by a restart, which is seen at the third look after it."""
        nonlocal looks
        looks += 1
        restarts = kills if kills < 3 or looks >= 3 else 2
        return View(FLEET, (replica("a", restarts), replica("b", 0)))

    class Kills(Site):
        async def do(self, step: Any) -> None:
            nonlocal kills, looks
            kills, looks = kills + 1, 0

    async def at_once(_: float) -> None:
        return None

    monkeypatch.setattr(run, "look", look)
    monkeypatch.setattr(run.asyncio, "sleep", at_once)
    scenario = next(s for s in read_all() if s.name == "engine-host-killed-three-times")
    site: Any = Kills()
    _, lacking = await run._cycle(scenario, site, lambda said: None)
    assert (lacking, kills, looks) == ("", 3, 3)


async def test_a_step_that_fails_ends_the_cycle_and_not_the_count_of_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "look", lambda *_: None)
    scenario = next(s for s in read_all() if s.name == "long-run")
    site: Any = Site()
    recovery_s, lacking = await run._cycle(scenario, site, lambda said: None)
    assert recovery_s is None
    assert lacking == "scale failed: kubectl drain node0 ended with 1: deadline exceeded"
