"""What a watch says becomes one event for the core; the end of an object says which object has ended."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.core.events import KINDS, Key, Kind, ObjectChanged
from moefleet_operator.handlers.scope import Watch
from moefleet_operator.handlers.watching import _handler
from moefleet_operator.kube.resources import PODS


async def told(kind: Kind, event: dict[str, Any]) -> ObjectChanged:
    said: list[ObjectChanged] = []
    await _handler(Watch(kind, PODS, ("models",), ""), said.append)(event=event, other="ignored")
    (only,) = said
    return only


def pod(**meta: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "models", "name": "chat-0", **meta}, "spec": {"nodeName": "n"}}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deletion_names_the_uid_so_that_the_next_object_of_that_name_stays(kind: Kind) -> None:
    assert await told(kind, {"type": "DELETED", "object": pod(uid="first")}) == ObjectChanged(
        kind, Key("models", "chat-0"), None, "first"
    )


@pytest.mark.parametrize("type_", ["ADDED", "MODIFIED", None])
async def test_everything_else_brings_the_object_without_its_managed_fields(type_: str | None) -> None:
    event = {"type": type_, "object": pod(uid="u", managedFields=[{"manager": "kubelet"}])}
    assert await told("Pod", event) == ObjectChanged("Pod", Key("models", "chat-0"), pod(uid="u"))
