"""The loop around the core, with a core that is scripted: answers come back, errors end it, renewals pass queues."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from moefleet_operator.core.effects import CreatePod, Effect, Exit, Relist, WakeAt, WriteLease
from moefleet_operator.core.events import EffectDone, Event, Key, Ok, Outcome, Stop, Tick, Transient
from moefleet_operator.handlers.inbox import Inbox
from moefleet_operator.handlers.loop import CoreLoop
from moefleet_operator.kube.clock import ServerClock
from moefleet_operator.metrics import Metrics

COMMON: dict[str, Any] = {"reason": "Why", "message": "m", "not_after": float("inf")}


def create(number: int) -> CreatePod:
    return CreatePod(id=number, object=Key("ns", f"chat-0a1b2c3d-{number}"), body={}, **COMMON)


LEASE = WriteLease(id=900, object=Key("ops", "lease"), intent="renew", body={}, **COMMON)
EXIT = Exit(id=901, object=Key("ops", "lease"), code=3, **COMMON)


class Brain:
    def __init__(self, react: Callable[[Event], Sequence[Effect]]) -> None:
        self.react = react
        self.heard: list[Event] = []

    def on(self, event: Event, now: float, wall: float) -> Sequence[Effect]:
        self.heard.append(event)
        return self.react(event)


class Runner:
    """Pods wait until `let_go`; the Lease is answered at once."""

    def __init__(self, fail: Exception | None = None) -> None:
        self.let_go = asyncio.Event()
        self.began = asyncio.Event()
        self.fail = fail
        self.running = 0
        self.most = 0

    async def run(self, effect: Effect) -> Outcome:
        if isinstance(effect, WriteLease):
            return Ok()
        self.running += 1
        self.most = max(self.most, self.running)
        self.began.set()
        await self.let_go.wait()
        self.running -= 1
        if self.fail is not None:
            raise self.fail
        return Transient("busy") if effect.id == 2 else Ok()


def loop_of(
    brain: Brain,
    runner: Runner,
    metrics: Metrics | None = None,
    relist: Callable[[], Awaitable[Outcome]] | None = None,
) -> tuple[CoreLoop, Inbox]:
    inbox = Inbox()
    return (
        CoreLoop(
            brain=brain,
            runner=runner,
            relist=relist or nothing_listed,
            inbox=inbox,
            clock=ServerClock(),
            metrics=metrics or Metrics(),
        ),
        inbox,
    )


async def nothing_listed() -> Outcome:
    return Transient("Pod: 503")


async def test_every_effect_is_answered_once_and_the_code_comes_out() -> None:
    runner = Runner()

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Tick):
            runner.let_go.set()
            return [create(1), create(2)]
        answered = {e.effect_id for e in brain.heard if isinstance(e, EffectDone)}
        return [EXIT] if answered == {1, 2} else []

    brain = Brain(react)
    metrics = Metrics()
    loop, _ = loop_of(brain, runner, metrics)
    assert await loop.run() == 3
    done = [event for event in brain.heard if isinstance(event, EffectDone)]
    assert sorted(done, key=lambda e: e.effect_id) == [EffectDone(1, Ok()), EffectDone(2, Transient("busy"))]
    text = metrics.text().decode()
    assert 'moefleet_operator_writes_total{kind="Pod",outcome="Ok",verb="create"} 1.0' in text
    assert 'moefleet_operator_writes_total{kind="Pod",outcome="Transient",verb="create"} 1.0' in text
    assert 'moefleet_operator_decisions_total{effect="CreatePod",reason="Why"} 2.0' in text
    assert "moefleet_operator_reconcile_seconds_count 1.0" in text


async def test_the_lease_is_renewed_while_a_hundred_pods_wait() -> None:
    runner = Runner()

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Tick):
            return [*(create(n) for n in range(100)), LEASE]
        if isinstance(event, EffectDone) and event.effect_id == LEASE.id:
            return [EXIT]
        return []

    brain = Brain(react)
    loop, _ = loop_of(brain, runner)
    assert await loop.run() == 3
    # Of one fleet at most eight are started.
    assert runner.most == 8


@pytest.mark.parametrize(
    ("listed", "outcome"),
    [(Ok(), Ok()), (None, Transient("not listed within 0 s"))],
    ids=["listed", "an API server that does not answer"],
)
async def test_a_list_is_asked_for_beside_all_lanes_and_ends_with_its_time(
    listed: Outcome | None, outcome: Outcome
) -> None:
    async def relist() -> Outcome:
        if listed is None:
            await asyncio.Event().wait()
        assert listed is not None
        return listed

    def react(event: Event) -> Sequence[Effect]:
        if isinstance(event, Tick):
            end = ServerClock().now() + (30.0 if listed else 0.05)
            what = Relist(id=7, object=Key("ops", "op-1"), reason="Relist", message="m", not_after=end)
            return [*(create(n) for n in range(1, 7)), what]
        if isinstance(event, EffectDone) and event.effect_id == 7:
            return [EXIT]
        return []

    brain = Brain(react)
    loop, _ = loop_of(brain, Runner(), relist=relist)
    assert await loop.run() == 3
    assert brain.heard[-1] == EffectDone(7, outcome)


async def test_it_wakes_when_the_core_asked_for_it_and_only_then() -> None:
    def react(event: Event) -> Sequence[Effect]:
        ticks = sum(isinstance(e, Tick) for e in brain.heard)
        wake = [
            WakeAt(id=5, object=Key("", ""), at=ServerClock().now() + later, **COMMON)
            for later in (3600.0, 0.0)
        ]
        return [EXIT] if ticks == 2 else wake

    brain = Brain(react)
    loop, _ = loop_of(brain, Runner())
    assert await loop.run() == 3
    assert brain.heard == [Tick(), Tick()]


async def test_an_error_in_an_effect_ends_the_process_aloud() -> None:
    runner = Runner(fail=TypeError("a bug"))
    runner.let_go.set()
    brain = Brain(lambda event: [create(1)] if isinstance(event, Tick) else [])
    loop, _ = loop_of(brain, runner)
    with pytest.raises(TypeError, match="a bug"):
        await loop.run()


async def test_an_error_in_the_core_ends_the_process_aloud() -> None:
    def react(event: Event) -> Sequence[Effect]:
        raise ValueError("a bug in the core")

    loop, _ = loop_of(Brain(react), Runner())
    with pytest.raises(ValueError, match="a bug in the core"):
        await loop.run()


async def test_what_still_runs_at_the_end_is_cancelled() -> None:
    runner = Runner()

    def react(event: Event) -> Sequence[Effect]:
        return [EXIT] if isinstance(event, Stop) else [create(1)]

    brain = Brain(react)
    loop, inbox = loop_of(brain, runner)
    running = asyncio.create_task(loop.run())
    await runner.began.wait()
    inbox.put(Stop())
    assert await running == 3
    assert not any(isinstance(event, EffectDone) for event in brain.heard)
