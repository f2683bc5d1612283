"""One scenario from the first request to the verdict."""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from moefleet_e2e import fleets
from moefleet_e2e.kube import CommandError, Kube, Object, eventually, ready
from moefleet_e2e.release import Release

from .judge import Numbers, Seen, count, judge
from .load import Streams, prompts
from .scenario import Scenario, Wanted
from .states import KEPT, look, missing
from .wounds import ENVOY_PORT, Site, namespace

FLEET = "victim"
POLL_S = 0.5
FIRST_START_S = 240
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Result:
    """A row of the table."""

    name: str
    says: str
    broken: list[str]
    numbers: Numbers
    # Until the wanted state; None: not reached, or never begun.
    recovery_s: float | None
    ran_in_hurt: int = 0
    cycles: int = 1
    took_s: float = 0.0
    # What somebody who looks into a failure wants to see first.
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.broken


async def run(scenario: Scenario, release: Release, say: Say) -> Result:
    """Never raises for what the cluster did: that is the result."""
    began = time.monotonic()
    try:
        kube = await asyncio.to_thread(namespace, f"fault-{scenario.name}")
    except CommandError as error:
        return Result(scenario.name, scenario.says, [f"no namespace: {error}"], Numbers(), None)
    try:
        return await _run(scenario, release, kube, say, began)
    except Exception as error:
        traceback.print_exc()
        told = f"{type(error).__name__}: {error}"
        return Result(
            scenario.name,
            scenario.says,
            [f"did not run: {told[:600]}"],
            Numbers(),
            None,
            took_s=time.monotonic() - began,
        )
    finally:
        kube.remove()


async def _run(scenario: Scenario, release: Release, kube: Kube, say: Say, began: float) -> Result:
    await asyncio.to_thread(kube.apply, manifest(scenario, kube.namespace))
    await ready(kube, FLEET, scenario.fleet.replicas, FIRST_START_S)
    gateways = [f"{p['status']['podIP']}:{ENVOY_PORT}" for p in release.pods("gateway")]
    streams = Streams(
        release.gateway_address(),
        f"{kube.namespace}/{FLEET}",
        scenario.load,
        prompts(scenario.fleet.engine),
        gateways if scenario.load.plain_through == "pods" else (),
    )
    site = Site(release, kube, FLEET, streams)
    say(f"{scenario.name}: fleet ready, learning {len(streams.prompts)} answers")
    await streams.learn()
    await streams.start()
    cycles, recovery_s, unrecovered, notes = 0, None, "", []
    injected_s = time.monotonic()
    try:
        await eventually(
            f"{scenario.load.running} streams",
            lambda: len(streams.running) >= scenario.load.running,
            90,
            lambda: f"{len(streams.running)} run, {len(streams.ended)} ended: {streams.ended[-3:]}",
        )
        injected_s = time.monotonic()
        until_s = injected_s + scenario.repeat_minutes * 60
        while True:
            recovery_s, unrecovered = await _cycle(scenario, site, say)
            cycles += 1
            if unrecovered or time.monotonic() >= until_s:
                break
            say(f"{scenario.name}: cycle {cycles}, {len(streams.ended)} requests ended")
        say(f"{scenario.name}: {unrecovered or f'as wanted after {recovery_s:.1f} s'}")
        if unrecovered:
            notes.append(await asyncio.to_thread(kube.explain, FLEET))
        await asyncio.sleep(scenario.rest_s)
    finally:
        await asyncio.to_thread(site.undo)
        given_up = await streams.finish()
    if given_up:
        notes.append(f"{given_up} requests never ended")
    seen = Seen(streams.ended, injected_s, frozenset(site.hurt), site.ran_in_hurt, unrecovered)
    broken = judge(scenario.hold, seen)
    if given_up:
        broken.append(f"{given_up} requests never ended")
    if broken and not unrecovered:
        notes += [f"{r}"[:900] for r in streams.ended if r.broke][:6]
    return Result(
        scenario.name,
        scenario.says,
        broken,
        count(streams.ended),
        recovery_s,
        ran_in_hurt=site.ran_in_hurt,
        cycles=cycles,
        took_s=time.monotonic() - began,
        notes=notes,
    )


async def _cycle(scenario: Scenario, site: Site, say: Say) -> tuple[float | None, str]:
    """All steps once. Seconds until the wanted state from the step that counts, and what is missing if it was not reached."""
    before = await asyncio.to_thread(look, site.kube, site.release, FLEET, scenario.until)
    at: list[float] = []
    for step in scenario.steps:
        await asyncio.sleep(step.after_s)
        if step is scenario.steps[-1] and scenario.until.restarted and scenario.recovery_from == "last":
            # What an earlier step made begin again is no recovery from this one.
            before = await asyncio.to_thread(look, site.kube, site.release, FLEET, scenario.until)
        say(f"{scenario.name}: {step.do} {_brief(step)}")
        at.append(time.monotonic())
        try:
            await site.do(step)
        except CommandError as error:
            # What was seen of the requests until then counts all the same.
            return None, f"{step.do} failed: {str(error)[-300:]}"
        if step.then is not None:
            _, lacking = await reached(site, step.then, before)
            if lacking:
                return None, f"after {step.do}: {lacking}"
            before = await asyncio.to_thread(look, site.kube, site.release, FLEET, scenario.until)
    from_s = at[0] if scenario.recovery_from == "first" else at[-1]
    reached_s, lacking = await reached(site, scenario.until, before)
    return (None, lacking) if lacking else (reached_s - from_s, "")


async def reached(site: Site, wanted: Wanted, before: Any) -> tuple[float, str]:
    """When it was reached; else what was missing at the end."""
    until = time.monotonic() + wanted.limit_s
    kept = frozenset(f"{site.release.namespace}:{name}" for name in KEPT)
    lacking = "never asked"
    while time.monotonic() < until:
        try:
            view = await asyncio.to_thread(look, site.kube, site.release, FLEET, wanted)
            lacking = missing(view, wanted, before, kept)
        except (CommandError, OSError) as error:
            lacking = f"the cluster does not answer: {str(error)[:200]}"
        if not lacking:
            return time.monotonic(), ""
        await asyncio.sleep(POLL_S)
    return time.monotonic(), f"not as wanted after {wanted.limit_s:.0f} s: {lacking}"


def _brief(step: Any) -> str:
    said = step.model_dump(exclude={"do", "after_s", "then"}, exclude_defaults=True)
    return ", ".join(f"{k}={v}" for k, v in said.items())[:120]


def manifest(scenario: Scenario, space: str) -> Object:
    shape = scenario.fleet
    make = fleets.simulated if shape.engine == "Simulated" else fleets.tiny
    base: Object = {
        "replicas": shape.replicas,
        "scaling": {"mode": "External", "minReplicas": 1, "maxReplicas": 8},
    }
    return make(FLEET, space, **fleets.merged(base, shape.changes))
