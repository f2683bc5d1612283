"""What we may do here, asked once at the start: a missing right becomes a named line, a metric and an unknown kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .clock import Clock
from .limits import WRITE_TIMEOUT_S
from .reads import read
from .resources import ACCESS_REVIEWS, EVENTS, LEASES, MOEFLEETS, NODES, PDBS, PODS, SERVICES, Resource
from .wire import Request, Transport


@dataclass(frozen=True, slots=True, order=True)
class Right:
    verb: str
    group: str
    resource: str
    subresource: str = ""
    # "": in all namespaces, or a cluster-scoped resource.
    namespace: str = ""

    def __str__(self) -> str:
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        group = f".{self.group}" if self.group else ""
        where = f" in namespace {self.namespace}" if self.namespace else ""
        return f"{self.verb} {what}{group}{where}"


_READ = ("list", "watch")
_CHILD = (*_READ, "create", "patch")


def rights_needed(namespaces: Sequence[str], own_namespace: str) -> tuple[Right, ...]:
    """namespaces: those whose fleets we serve; none named means all."""
    rights: list[Right] = []
    for namespace in namespaces or ("",):
        rights += _of(MOEFLEETS, _READ, namespace)
        rights += _of(MOEFLEETS, ("patch",), namespace, "status")
        rights += _of(PODS, (*_READ, "get", "create", "patch", "delete"), namespace)
        rights += _of(PODS, ("patch",), namespace, "status")
        rights += _of(SERVICES, _CHILD, namespace)
        rights += _of(PDBS, _CHILD, namespace)
        rights += _of(EVENTS, ("create",), namespace)
    rights += _of(NODES, _READ, "")
    rights += _of(PODS, _READ, own_namespace)
    rights += _of(LEASES, ("get", "create", "update"), own_namespace)
    return tuple(dict.fromkeys(rights))


async def missing_rights(transport: Transport, clock: Clock, rights: Iterable[Right]) -> tuple[Right, ...]:
    """One review for each; a server that refuses the review itself refuses everything else, too."""
    missing: list[Right] = []
    for right in rights:
        attributes = {
            "verb": right.verb,
            "group": right.group,
            "resource": right.resource,
            "subresource": right.subresource,
            "namespace": right.namespace,
        }
        body = {
            "apiVersion": ACCESS_REVIEWS.api_version,
            "kind": ACCESS_REVIEWS.kind,
            "spec": {"resourceAttributes": {k: v for k, v in attributes.items() if v}},
        }
        request = Request(verb="POST", path=ACCESS_REVIEWS.path(""), body=body, timeout_s=WRITE_TIMEOUT_S)
        answer = await read(transport, clock, request)
        if not (answer.body.get("status") or {}).get("allowed"):
            missing.append(right)
    return tuple(missing)


def may_watch(resource: Resource, namespaces: Iterable[str], missing: Iterable[Right]) -> bool:
    lacking = {(r.verb, r.group, r.resource, r.namespace) for r in missing if not r.subresource}
    return not any(
        (verb, resource.group, resource.plural, namespace if resource.namespaced else "") in lacking
        for verb in _READ
        for namespace in namespaces
    )


def _of(resource: Resource, verbs: Iterable[str], namespace: str, subresource: str = "") -> list[Right]:
    return [Right(verb, resource.group, resource.plural, subresource, namespace) for verb in verbs]
