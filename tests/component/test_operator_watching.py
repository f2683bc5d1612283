"""Real kopf on a fake API server: what is watched arrives as events, nothing is written, and a watch that ends is noticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from moefleet_operator.core.events import Key, ObjectChanged
from moefleet_operator.handlers.scope import Scope, scope
from moefleet_operator.handlers.watching import WatchThread, quieten
from moefleet_operator.kube.connect import Credentials
from moefleet_operator_rig.fake_api import FakeApi

LIMIT_S = 30.0


class Heard:
    def __init__(self) -> None:
        self.events: list[ObjectChanged] = []
        self._home = asyncio.get_running_loop()
        self._news = asyncio.Event()

    def emit(self, event: ObjectChanged) -> None:
        self._home.call_soon_threadsafe(self._add, event)

    def _add(self, event: ObjectChanged) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, what: Callable[[list[ObjectChanged]], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not what(self.events):
                self._news.clear()
                # What is asked may also be about the server, which says nothing.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.05)

    def of(self, name: str, kind: str = "MoEFleet") -> list[ObjectChanged]:
        return [event for event in self.events if event.key.name == name and event.kind == kind]


@asynccontextmanager
async def watching(
    api: FakeApi, found: Scope, tokens: list[str] | None = None
) -> AsyncIterator[tuple[Heard, WatchThread]]:
    quieten()
    heard = Heard()
    given = tokens if tokens is not None else ["good"]

    async def login() -> Credentials:
        token = given.pop(0) if len(given) > 1 else given[0]
        return Credentials(api.server, None, True, "Bearer", token, None, None, None)

    thread = WatchThread(found.watches, login, heard.emit)
    thread.start()
    try:
        yield heard, thread
    finally:
        await thread.stop()


async def test_what_is_there_and_what_changes_arrives_and_kopf_writes_nothing() -> None:
    async with FakeApi().running() as api:
        api.put("moefleets", "team", "chat", spec={"a": 1})
        api.put("nodes", "", "n1")
        api.put("pods", "ops", "gateway-0")
        async with watching(api, scope((), "ops", True, ())) as (heard, _):
            await heard.until(lambda _: heard.of("chat") and heard.of("n1", "Node"))
            # The gateway's pod is watched by its own operator, and as a pod like any other.
            await heard.until(lambda _: heard.of("gateway-0", "GatewayPod") and heard.of("gateway-0", "Pod"))
            uid = api.objects["moefleets", "team", "chat"]["metadata"]["uid"]
            api.put("moefleets", "team", "chat", spec={"a": 2})
            await heard.until(lambda _: len(heard.of("chat")) == 2)
            api.delete("moefleets", "team", "chat")
            await heard.until(lambda _: len(heard.of("chat")) == 3)
        first, second, last = heard.of("chat")
        assert first.key == Key("team", "chat")
        assert first.object is not None
        assert "managedFields" not in first.object["metadata"]
        assert second.object is not None
        assert second.object["spec"] == {"a": 2}
        assert last == ObjectChanged("MoEFleet", Key("team", "chat"), None, uid)
        assert heard.of("n1", "Node")[0].key == Key("", "n1")
    assert {request.split()[0] for request in api.requests} == {"GET"}


async def test_in_namespaces_nothing_of_the_whole_cluster_is_asked_for_but_nodes() -> None:
    async with FakeApi().running() as api:
        for namespace in ("a", "b", "c"):
            api.put("moefleets", namespace, "chat")
        api.put("nodes", "", "n1")
        async with watching(api, scope(("a", "b"), "ops", True, ())) as (heard, _):
            await heard.until(lambda _: len(heard.of("chat")) == 2 and heard.of("n1", "Node"))
        assert {event.key.namespace for event in heard.of("chat")} == {"a", "b"}
    asked = {request.removeprefix("GET ") for request in api.requests}
    assert not asked & {"/api/v1/pods", "/api/v1/namespaces", "/apis/moefleet.io/v1alpha1/moefleets"}
    assert not any("customresourcedefinitions" in path for path in asked)


async def test_a_watch_that_is_cut_or_too_old_goes_on_and_loses_nothing() -> None:
    async with FakeApi().running() as api:
        api.put("moefleets", "team", "chat", spec={"a": 1})
        async with watching(api, scope((), "ops", False, ())) as (heard, _):
            await heard.until(lambda _: heard.of("chat") and api.watches("moefleets"))
            api.cut()
            api.put("moefleets", "team", "code", spec={})
            await heard.until(lambda _: heard.of("code"))
            api.expire("moefleets")
            api.put("moefleets", "team", "more", spec={})
            await heard.until(lambda _: heard.of("more"))


async def test_a_rotated_token_is_asked_for_again() -> None:
    async with FakeApi(tokens={"new"}).running() as api:
        api.put("moefleets", "team", "chat")
        async with watching(api, scope((), "ops", False, ()), ["old", "new"]) as (heard, _):
            await heard.until(lambda _: heard.of("chat"))


async def test_a_watch_that_fails_for_good_ends_the_watching_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moefleet_operator.handlers.watching.WATCH_BACKOFFS_S", (0.1, 0.1))
    monkeypatch.setattr("moefleet_operator.handlers.watching.LOOK_EVERY_S", 0.05)
    async with FakeApi().running() as api:
        api.put("moefleets", "team", "chat")
        async with watching(api, scope((), "ops", False, ())) as (heard, thread):
            await heard.until(lambda _: heard.of("chat") and api.watches("services"))
            # The right was taken away: kopf gives this watch up, and tells nobody.
            api.refuse["services"] = [403] * 10
            api.cut()
            async with asyncio.timeout(LIMIT_S):
                with pytest.raises(RuntimeError, match="1 of 7 watches ended: services"):
                    await thread.ended
