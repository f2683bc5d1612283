"""What we may do here, asked once at the start: a missing right becomes a named line, a metric and an unknown kind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .clock import Clock
from .limits import READ_CONNECTIONS, WRITE_TIMEOUT_S
from .reads import read
from .resources import (
    ACCESS_REVIEWS,
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    MOEFLEETS,
    NODES,
    PDBS,
    PODS,
    QUOTAS,
    REVISIONS,
    SERVICES,
    Resource,
)
from .wire import Request, Transport


@dataclass(frozen=True, slots=True, order=True)
class Right:
    verb: str
    group: str
    resource: str
    subresource: str = ""
    # "": in all namespaces, or a cluster-scoped resource.
    namespace: str = ""
    # "": of every name.
    name: str = ""

    def __str__(self) -> str:
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        group = f".{self.group}" if self.group else ""
        name = f" {self.name}" if self.name else ""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {what}{group}{name}{where}"


_READ = ("list", "watch")
_CHILD = (*_READ, "get", "create", "patch")


def rights_needed(namespaces: Sequence[str], own_namespace: str, lease: str) -> tuple[Right, ...]:
    """namespaces: those whose fleets we serve; none named means all. lease: its name, which roles may be narrowed to."""
    rights: list[Right] = []
    for namespace in namespaces or ("",):
        rights += _of(MOEFLEETS, _READ, namespace)
        rights += _of(MOEFLEETS, ("patch",), namespace, "status")
        rights += _of(PODS, (*_READ, "get", "create", "patch", "delete"), namespace)
        rights += _of(PODS, ("patch",), namespace, "status")
        rights += _of(SERVICES, _CHILD, namespace)
        rights += _of(PDBS, _CHILD, namespace)
        rights += _of(REVISIONS, (*_CHILD, "delete"), namespace)
        rights += _of(QUOTAS, _READ, namespace)
        rights += _of(CONFIG_MAPS, ("get", "create", "patch"), namespace)
        rights += _of(EVENTS, ("create",), namespace)
    rights += _of(NODES, _READ, "")
    rights += _of(PODS, _READ, own_namespace)
    rights += _of(LEASES, ("create",), own_namespace)
    rights += [replace(right, name=lease) for right in _of(LEASES, ("get", "update"), own_namespace)]
    return tuple(dict.fromkeys(rights))


async def missing_rights(transport: Transport, clock: Clock, rights: Iterable[Right]) -> tuple[Right, ...]:
    """Those of `rights` that we lack; raises as `read` does."""
    turn = asyncio.Semaphore(READ_CONNECTIONS)

    async def lacks(right: Right) -> bool:
        async with turn:
            answer = await read(transport, clock, _review(right))
        return not (answer.body.get("status") or {}).get("allowed")

    wanted = list(rights)
    lacking = await asyncio.gather(*(lacks(right) for right in wanted))
    return tuple(right for right, lacks_it in zip(wanted, lacking, strict=True) if lacks_it)


def _review(right: Right) -> Request:
    attributes = {
        "verb": right.verb,
        "group": right.group,
        "resource": right.resource,
        "subresource": right.subresource,
        "namespace": right.namespace,
        "name": right.name,
    }
    body = {
        "apiVersion": ACCESS_REVIEWS.api_version,
        "kind": ACCESS_REVIEWS.kind,
        "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
    }
    return Request(verb="POST", path=ACCESS_REVIEWS.path(""), body=body, timeout_s=WRITE_TIMEOUT_S)


def may_watch(resource: Resource, namespaces: Iterable[str], missing: Iterable[Right]) -> bool:
    lacking = {(r.verb, r.group, r.resource, r.namespace) for r in missing if not r.subresource}
    return not any(
        (verb, resource.group, resource.plural, namespace if resource.namespaced else "") in lacking
        for verb in _READ
        for namespace in namespaces
    )


def _of(resource: Resource, verbs: Iterable[str], namespace: str, subresource: str = "") -> list[Right]:
    return [Right(verb, resource.group, resource.plural, subresource, namespace) for verb in verbs]
