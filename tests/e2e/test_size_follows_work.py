"""The number of replicas follows the tokens that arrive; by hand it follows the hand; Advisory only talks."""

from __future__ import annotations

import asyncio

from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import Kube, condition, eventually
from moefleet_e2e.release import Release
from moefleet_load.run import Arrival, Load
from moefleet_load.stream import End


def busy(seconds: int, per_s: float) -> list[Arrival]:
    return [Arrival(i / per_s, 1500, 60) for i in range(int(seconds * per_s))]


async def test_load_raises_the_fleet_and_quiet_lowers_it_and_no_stream_is_cut(
    kube: Kube, release: Release
) -> None:
    kube.apply(simulated("tide", kube.namespace, engine={"args": {"speed": 0.05}}))
    await eventually(
        "Ready",
        lambda: condition(kube.get("moefleet", "tide"), "Ready") == "True",
        120,
        lambda: kube.explain("tide"),
    )

    load = Load(release.gateway_address(), f"{kube.namespace}/tide")
    running = asyncio.create_task(load.run(busy(90, 5)))
    grown = await eventually(
        "more than one ready replica",
        lambda: len(kube.ready_replicas("tide")) > 1,
        90,
        lambda: kube.explain("tide"),
    )
    assert grown
    load.stop()
    await running
    await eventually(
        "one replica again", lambda: len(kube.replicas("tide")) == 1, 180, lambda: kube.explain("tide")
    )

    assert [o for o in load.outcomes if o.end is not End.OK] == []
    decision = (kube.get("moefleet", "tide") or {})["status"]["scaling"]["lastDecision"]
    assert decision["reason"]
    assert any(character.isdigit() for character in decision["message"]), decision
    assert [e for e in kube.events("tide") if "cale" in (e.get("reason") or "")], (
        "no event tells of the scaling"
    )


async def test_external_mode_obeys_kubectl_scale(kube: Kube) -> None:
    kube.apply(simulated("hand", kube.namespace, replicas=1, scaling={"mode": "External"}))
    await eventually(
        "one ready", lambda: len(kube.ready_replicas("hand")) == 1, 120, lambda: kube.explain("hand")
    )
    kube.kubectl("scale", "moefleet", "hand", "--replicas=3")
    await eventually(
        "three ready", lambda: len(kube.ready_replicas("hand")) == 3, 120, lambda: kube.explain("hand")
    )
    status = (kube.get("moefleet", "hand") or {})["status"]
    assert "moefleet.io/fleet=hand" in status["selector"]
    kube.kubectl("scale", "moefleet", "hand", "--replicas=1")
    await eventually("one left", lambda: len(kube.replicas("hand")) == 1, 120, lambda: kube.explain("hand"))


async def test_advisory_mode_says_what_it_would_do_and_does_nothing(kube: Kube, release: Release) -> None:
    kube.apply(
        simulated("advice", kube.namespace, engine={"args": {"speed": 0.05}}, scaling={"mode": "Advisory"})
    )
    await eventually(
        "Ready",
        lambda: condition(kube.get("moefleet", "advice"), "Ready") == "True",
        120,
        lambda: kube.explain("advice"),
    )
    load = Load(release.gateway_address(), f"{kube.namespace}/advice")
    running = asyncio.create_task(load.run(busy(90, 5)))

    def advised() -> bool:
        status = (kube.get("moefleet", "advice") or {}).get("status") or {}
        return int(((status.get("scaling") or {}).get("lastDecision") or {}).get("to") or 0) > 1

    await eventually("advice of more than one replica", advised, 90, lambda: kube.explain("advice"))
    load.stop()
    await running
    assert len(kube.replicas("advice")) == 1
    assert [o for o in load.outcomes if o.end is not End.OK] == []
