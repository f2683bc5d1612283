"""The operator as one piece, with a core that is scripted, on a fake API server: health, readiness, metrics, and its end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from moefleet_operator.core.effects import Effect, Exit, ReadLease, WakeAt
from moefleet_operator.core.events import KINDS, Event, Json, Key, ObjectChanged, Relisted, Stop, Synced
from moefleet_operator.core.settings import CoreSettings
from moefleet_operator.handlers import process, resync, startup, watching
from moefleet_operator.handlers.process import Operator
from moefleet_operator.kube.clock import ServerClock
from moefleet_operator.planning.facts import PodFacts
from moefleet_operator.planning.observed import Replica
from moefleet_operator.settings import Settings
from moefleet_operator_rig.fake_api import FakeApi

LIMIT_S = 60.0
FLEETS = "GET /apis/moefleet.io/v1alpha1/moefleets"
REVIEWS = "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
COMMON: dict[str, Any] = {"reason": "Test", "message": "m", "not_after": float("inf")}


class ScriptedCore:
    """Hears everything, asks for the Lease once a second as a standby does, and ends when it is told to."""

    def __init__(self, settings: CoreSettings) -> None:
        self.settings = settings
        self.heard: list[Event] = []
        self.break_on: type[Event] | None = None

    errors: Mapping[Key, str] = {}

    def on(self, event: Event, now: float, wall: float) -> Sequence[Effect]:
        self.heard.append(event)
        if self.break_on is not None and isinstance(event, self.break_on):
            raise ValueError("a bug in the core")
        if isinstance(event, Stop):
            return [Exit(id=1, object=Key("", ""), code=0, **COMMON)]
        key = Key(self.settings.namespace, self.settings.lease_name)
        return [
            WakeAt(id=2, object=key, at=now + 1.0, **COMMON),
            ReadLease(id=3, object=key, **COMMON),
        ]

    def leading(self, now: float) -> bool:
        return False

    def fleets(self) -> Mapping[Key, Json]:
        return {}

    def remembers(self, fleet: Key) -> bool:
        return True

    def target(self, fleet: Key) -> int | None:
        return None

    def replicas(self, fleet: Key) -> Sequence[Replica]:
        return ()

    def gateways(self) -> Sequence[PodFacts]:
        return ()


class Running:
    def __init__(self, task: asyncio.Task[int], port: int, cores: list[ScriptedCore]) -> None:
        self.task = task
        self.port = port
        self.cores = cores

    async def get(self, path: str) -> tuple[int, str]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def until(self, what: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not what():
                assert not self.task.done(), self.task
                await asyncio.sleep(0.02)

    async def until_path(self, path: str, wanted: int) -> str:
        async with asyncio.timeout(LIMIT_S):
            # HTTP has no event to wait for.
            while (found := await self.get(path))[0] != wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return found[1]


@asynccontextmanager
async def operator(api: FakeApi, folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    ports: asyncio.Queue[int] = asyncio.Queue()
    cores: list[ScriptedCore] = []
    serve = process.serve

    async def listening(*arguments: Any, **named: Any) -> Any:
        runner, port = await serve(*arguments, **named)
        ports.put_nowait(port)
        return runner, port

    def make(settings: CoreSettings) -> ScriptedCore:
        cores.append(ScriptedCore(settings))
        return cores[-1]

    monkeypatch.setattr(process, "serve", listening)
    settings = Settings(
        namespace="ops",
        pod_name="operator-0",
        control_key=None,
        watch_namespaces=(),
        gateway=False,
        node_autoscaler=False,
        metrics_host="127.0.0.1",
        metrics_port=0,
        log_level="info",
        kubeconfig=str(api.write_kubeconfig(folder / "kubeconfig")),
    )
    task = asyncio.create_task(Operator(settings, make, ServerClock()).run())
    try:
        yield Running(task, await asyncio.wait_for(ports.get(), LIMIT_S), cores)
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.gather(task, return_exceptions=True)


async def test_it_waits_for_the_crd_and_is_ready_after_the_first_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "RELIST_RETRY_S", 0.1)
    async with FakeApi().running() as api:
        api.refuse["moefleets"] = [404] * 3
        async with operator(api, tmp_path, monkeypatch) as running:
            assert (await running.get("/readyz"))[0] == 503
            assert (await running.get("/healthz"))[0] == 200
            api.put("moefleets", "team", "chat")
            await running.until_path("/readyz", 200)
            await running.until(lambda: running.cores and len(running.cores[0].heard) > 10)
            core = running.cores[0]
            kinds = [event.kind for event in core.heard if isinstance(event, Synced)]
            assert sorted(kinds) == sorted(KINDS)
            listed = next(e for e in core.heard if isinstance(e, Relisted) and e.kind == "MoEFleet")
            assert [raw["metadata"]["name"] for raw in listed.objects] == ["chat"]
            await running.until(lambda: any(isinstance(event, ObjectChanged) for event in core.heard))
            text = (await running.get("/metrics"))[1]
            assert 'moefleet_operator_objects{kind="MoEFleet"} 1.0' in text
            assert "moefleet_operator_leader 0.0" in text


async def test_roles_that_are_not_known_yet_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Helm makes the roles and the Deployment at once; an API server that is slow says no to the first question."""
    monkeypatch.setattr(startup, "CONNECT_RETRY_S", 0.05)
    async with FakeApi().running() as api:
        api.put("moefleets", "team", "chat")
        api.denied = {"list moefleets", "watch moefleets", "list pods", "watch pods"}
        async with operator(api, tmp_path, monkeypatch) as running:
            said = await running.until_path("/readyz", 503)
            await running.until(lambda: api.requests[REVIEWS] > 100)
            said = (await running.get("/readyz"))[1]
            assert "no right to list and watch moefleets in the cluster" in said
            assert not running.cores
            assert (await running.get("/healthz"))[0] == 200
            api.denied.clear()
            await running.until_path("/readyz", 200)
            await running.until(
                lambda: any(
                    e.key.name == "chat" for e in running.cores[0].heard if isinstance(e, ObjectChanged)
                )
            )
            assert all(
                e.available
                for e in running.cores[0].heard
                if isinstance(e, Synced) and e.kind != "GatewayPod"
            )


async def test_a_right_that_comes_later_starts_the_process_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "RIGHTS_EVERY_S", 0.1)
    async with FakeApi().running() as api:
        api.denied = {"list nodes"}
        async with operator(api, tmp_path, monkeypatch) as running:
            await running.until_path("/readyz", 200)
            assert 'missing_right{right="list nodes"} 1.0' in (await running.get("/metrics"))[1]
            api.denied.clear()
            assert await asyncio.wait_for(running.task, LIMIT_S) == 1
            assert isinstance(running.cores[0].heard[-1], Stop)


async def test_a_right_that_is_taken_is_found_by_the_refused_list_and_nobody_asks_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "RIGHTS_EVERY_S", 0.05)
    monkeypatch.setattr(resync, "RELIST_EVERY_S", 0.2)
    async with FakeApi().running() as api:
        async with operator(api, tmp_path, monkeypatch) as running:
            await running.until_path("/readyz", 200)
            asked, listed = api.requests[REVIEWS], api.requests[FLEETS]
            await running.until(lambda: api.requests[FLEETS] > listed + 5)
            assert api.requests[REVIEWS] == asked, "a review is a POST: none while nothing happens"
            api.denied = {"list nodes", "watch nodes"}
            api.refuse["nodes"] = [403] * 1000
            assert await asyncio.wait_for(running.task, LIMIT_S) == 1
            assert api.requests[REVIEWS] > asked
            assert isinstance(running.cores[0].heard[-1], Stop)


async def test_a_crd_that_is_served_and_not_discovered_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "RELIST_RETRY_S", 0.05)
    async with FakeApi().running() as api:
        api.undiscovered = {"moefleets"}
        async with operator(api, tmp_path, monkeypatch) as running:
            await running.until(lambda: api.requests[FLEETS] > 3)
            assert (await running.get("/readyz"))[0] == 503
            api.undiscovered.clear()
            await running.until_path("/readyz", 200)
            # kopf looks only once: had it begun before, this watch would never be.
            await running.until(lambda: api.watches("moefleets"))


async def test_it_is_ready_when_its_watches_have_begun_and_brought_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeApi().running() as api:
        api.put("moefleets", "team", "chat")
        began = asyncio.Event()
        start = watching.WatchThread.start

        def begin(self: watching.WatchThread) -> None:
            # What we list ourselves is listed by now; kopf meets a server that is too busy.
            api.refuse["moefleets"] = [503] * 1000
            start(self)
            began.set()

        monkeypatch.setattr(watching.WatchThread, "start", begin)
        async with operator(api, tmp_path, monkeypatch) as running:
            await asyncio.wait_for(began.wait(), LIMIT_S)
            await running.until(lambda: api.requests[FLEETS] > 2)
            await running.until(lambda: api.watches("nodes"))
            status, said = await running.get("/readyz")
            assert status == 503
            assert said == "the watch of MoEFleet has brought nothing yet\n"
            del api.refuse["moefleets"]
            await running.until_path("/readyz", 200)
            assert any(isinstance(e, ObjectChanged) for e in running.cores[0].heard)


async def test_a_watch_that_says_nothing_makes_the_process_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resync, "RELIST_EVERY_S", 0.2)
    monkeypatch.setattr("moefleet_operator.handlers.audit.DEAD_AFTER_S", 1.0)
    async with FakeApi().running() as api:
        api.put("moefleets", "team", "chat")
        async with operator(api, tmp_path, monkeypatch) as running:
            await running.until_path("/readyz", 200)
            await running.until(lambda: api.watches("moefleets"))
            api.mute.add("moefleets")
            api.put("moefleets", "team", "new")
            said = await running.until_path("/healthz", 503)
            assert said.startswith(
                "the watch of MoEFleet is dead: a LIST has known team/new as it is now for"
            )
            # The core knows of it all the same: the LIST told it.
            assert any(
                isinstance(event, Relisted) and len(event.objects) == 2 for event in running.cores[0].heard
            )
            # It comes at last, and the process is well again.
            api.mute.clear()
            api.put("moefleets", "team", "new")
            await running.until_path("/healthz", 200)


async def test_sigterm_tells_the_core_and_its_code_is_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeApi().running() as api, operator(api, tmp_path, monkeypatch) as running:
        await running.until_path("/readyz", 200)
        await running.until(lambda: running.cores)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(running.task, LIMIT_S) == 0
        assert isinstance(running.cores[0].heard[-1], Stop)


async def test_sigterm_before_anything_was_found_ends_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeApi().running() as api:
        api.refuse["moefleets"] = [404] * 10_000
        async with operator(api, tmp_path, monkeypatch) as running:
            await running.until(lambda: api.requests["GET /apis/moefleet.io/v1alpha1/moefleets"])
            os.kill(os.getpid(), signal.SIGTERM)
            assert await asyncio.wait_for(running.task, LIMIT_S) == 0


async def test_a_core_that_breaks_ends_the_process_with_a_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeApi().running() as api, operator(api, tmp_path, monkeypatch) as running:
        await running.until(lambda: running.cores)
        running.cores[0].break_on = ObjectChanged
        api.put("moefleets", "team", "chat")
        assert await asyncio.wait_for(running.task, LIMIT_S) == 1


async def test_watching_that_breaks_ends_the_process_with_a_code_after_the_core_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WATCH_BACKOFFS_S", (0.1, 0.1))
    async with FakeApi().running() as api, operator(api, tmp_path, monkeypatch) as running:
        await running.until(lambda: api.watches("services"))
        api.refuse["services"] = [403] * 100
        api.cut()
        assert await asyncio.wait_for(running.task, LIMIT_S) == 1
        assert isinstance(running.cores[0].heard[-1], Stop)
