"""What scaling has learnt is read once and written every five minutes, and nothing waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace
from typing import Any

from moefleet_operator.core.events import Key
from moefleet_operator.handlers.keeping import MAX_DECISIONS, SAVE_EVERY_S, StateKeeper
from moefleet_operator.kube.wire import NotConnectedError, Request, Response
from moefleet_operator.scaling import (
    Decision,
    DemandPoint,
    DemandTotals,
    Reason,
    State,
    Terms,
    remember,
    resumed,
)
from moefleet_operator.scaling.headroom import Budget
from moefleet_operator.scaling.state import HISTORY_S

CHAT = Key("models", "chat")
PATH = "/api/v1/namespaces/models/configmaps/chat-scaling"
LEARNT = State(since_s=1.0, last_s=1000.0, budget=Budget(1000.0, 0.5, 10.0, 100.0), mix=(100.0, 0.0, 10.0))


class ApiServer:
    """One ConfigMap by server-side apply."""

    def __init__(self) -> None:
        self.object: dict[str, Any] | None = None
        self.requests: list[str] = []
        self.away = False

    async def send(self, request: Request) -> Response:
        self.requests.append(f"{request.verb} {request.path}")
        if self.away:
            raise NotConnectedError("nobody there")
        if request.verb == "PATCH":
            assert request.body is not None
            self.object = dict(request.body)
        return Response(404) if self.object is None else Response(200, self.object)


class Clock:
    """Sleeping is what moves it; it ends the keeper after so many seconds."""

    def __init__(self, ends_s: float) -> None:
        self.s, self.ends_s = 0.0, ends_s

    def now(self) -> float:
        return self.s

    def wall(self) -> float:
        return self.s

    async def sleep(self, seconds: float) -> None:
        self.s += seconds
        if self.s >= self.ends_s:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


def live(keeper: StateKeeper) -> None:
    async def whole() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await keeper.run()

    asyncio.run(whole())


def decision(replicas: int = 3) -> Decision:
    return Decision(replicas, Reason.DEMAND_ROSE, "work for 2.5", Terms(forecast=2.5, bound="TPOT"), LEARNT)


def test_what_one_process_has_learnt_the_next_one_finds() -> None:
    api = ApiServer()
    keeper = StateKeeper(api, Clock(10.0))
    assert keeper.recall(CHAT, "u1") == (False, None)
    keeper.keep(CHAT, LEARNT)
    keeper.note(CHAT, 2, decision(), 900.0)
    live(keeper)
    # Read at once, and written although five minutes were not over, because the process ended.
    assert api.requests == [f"GET {PATH}", f"PATCH {PATH}"]
    assert api.object is not None
    assert api.object["metadata"]["ownerReferences"][0]["uid"] == "u1"
    assert json.loads(api.object["data"]["decisions"]) == {
        "at": 900.0, "from": 2, "to": 3, "reason": "DemandRose", "message": "work for 2.5", "terms": {"forecast": 2.5, "bound": "TPOT"},
    }  # fmt: skip

    successor = StateKeeper(api, Clock(3.0))
    successor.recall(CHAT, "u1")
    live(successor)
    known, found = successor.recall(CHAT, "u1")
    assert known
    assert found == LEARNT


def test_a_fleet_of_the_same_name_created_again_begins_anew() -> None:
    api = ApiServer()
    first = StateKeeper(api, Clock(10.0))
    first.recall(CHAT, "u1")
    first.keep(CHAT, LEARNT)
    live(first)
    second = StateKeeper(api, Clock(3.0))
    second.recall(CHAT, "u2")
    live(second)
    assert second.recall(CHAT, "u2") == (True, None)


def test_writes_are_five_minutes_apart_and_the_ring_is_bounded() -> None:
    api, clock = ApiServer(), Clock(3 * SAVE_EVERY_S)
    keeper = StateKeeper(api, clock)
    keeper.recall(CHAT, "u1")
    for i in range(MAX_DECISIONS + 50):
        keeper.note(CHAT, i, decision(i + 1), float(i))
    ticking = clock.sleep

    async def sleep(seconds: float) -> None:
        keeper.keep(CHAT, replace(LEARNT, last_s=clock.s))
        await ticking(seconds)

    clock.sleep = sleep  # type: ignore[method-assign]
    live(keeper)
    assert 3 <= api.requests.count(f"PATCH {PATH}") <= 4
    assert api.object is not None
    lines = api.object["data"]["decisions"].splitlines()
    assert len(lines) == MAX_DECISIONS
    assert json.loads(lines[-1])["to"] == MAX_DECISIONS + 50


def test_an_api_server_that_is_away_keeps_nobody_waiting() -> None:
    api = ApiServer()
    api.away = True
    keeper = StateKeeper(api, Clock(5.0))
    keeper.recall(CHAT, "u1")
    keeper.keep(CHAT, LEARNT)
    live(keeper)
    assert keeper.recall(CHAT, "u1") == (True, None)


def test_a_restart_takes_what_was_learnt_from_the_kept_state_and_demand_from_the_replay() -> None:
    now = 5000.0
    points = [
        DemandPoint(now - 600 + 5 * i, DemandTotals(i * 50.0, i * 5000.0, 0.0, i * 500.0)) for i in range(120)
    ]
    replayed = remember(points, now)
    state = resumed(replayed, LEARNT, now)
    assert state.buckets == replayed.buckets
    assert state.since_s == replayed.since_s
    assert state.budget == LEARNT.budget
    assert state.last_demand is None
    assert resumed(replayed, None, now) == replayed
    # Nobody replays, and the kept demand is old: nothing is known of it, so that nothing goes down for one cold start.
    assert resumed(State(), LEARNT, now).since_s == 0.0
    assert resumed(State(), LEARNT, LEARNT.last_s + HISTORY_S / 2).since_s == LEARNT.since_s
