"""Events go from kopf's queues straight to ours, and everybody else's go kopf's way."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import kopf
import pytest
from kopf._core.reactor import processing
from moefleet_operator.core.events import Key, ObjectChanged
from moefleet_operator.handlers import shortcut
from moefleet_operator.handlers.scope import Watch
from moefleet_operator.handlers.shortcut import ForwardingRegistry, install
from moefleet_operator.handlers.watching import _registry
from moefleet_operator.kube.resources import PODS, SERVICES

POD = {"metadata": {"namespace": "models", "name": "chat-0", "uid": "u"}}
THERE = SimpleNamespace(group="", version="v1", plural="pods")


class Toggles:
    def __init__(self) -> None:
        self.dropped: list[object] = []

    async def drop_toggle(self, toggle: object) -> None:
        self.dropped.append(toggle)


async def kopfs_way(**_: Any) -> str:
    return "kopf's"


def test_the_kopf_that_is_installed_has_the_function_that_we_replace() -> None:
    assert install()
    replaced = processing.process_resource_event
    assert install(), "a second operator in this process takes the same way"
    assert processing.process_resource_event is replaced, "and it is not replaced twice"


def test_a_kopf_with_another_function_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def other(event: Any) -> None: ...

    monkeypatch.setattr(shortcut.processing, "process_resource_event", other)
    assert not install()
    assert shortcut.processing.process_resource_event is other


async def test_an_event_reaches_those_who_watch_its_resource_and_no_others() -> None:
    said: list[ObjectChanged] = []
    watches = [Watch("Pod", PODS, ("models",), ""), Watch("Service", SERVICES, ("models",), "")]
    registry = _registry(watches, login=None, emit=said.append)  # type: ignore[arg-type]  # nobody logs in
    toggles = Toggles()
    await shortcut._shortened(kopfs_way)(
        registry=registry,
        resource=THERE,
        raw_event={"type": "MODIFIED", "object": POD},
        resource_indexed="this object",
        operator_indexed=toggles,
        settings="more that kopf passes",
    )
    assert said == [ObjectChanged("Pod", Key("models", "chat-0"), POD)]
    assert toggles.dropped == ["this object"], "kopf waits for the objects of its first LIST otherwise"


async def test_events_of_other_registries_are_kopfs_business() -> None:
    process = shortcut._shortened(kopfs_way)
    event = {"type": "MODIFIED", "object": POD}
    assert await process(registry=kopf.OperatorRegistry(), resource=THERE, raw_event=event) == "kopf's"
    assert await process(registry=ForwardingRegistry(), resource=THERE, raw_event=event) is None
