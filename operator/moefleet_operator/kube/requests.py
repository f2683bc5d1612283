"""The request that each effect is, as a pure function: what goes over the wire can be read and tested here."""

from __future__ import annotations

from typing import Any

from moefleet_operator.core.effects import (
    FIELD_MANAGER,
    Apply,
    CreatePod,
    DeletePod,
    DeleteRevision,
    EmitEvent,
    PatchPod,
    PatchPodConditions,
    PatchRevision,
    ReadLease,
    WriteLease,
)
from moefleet_operator.core.wire import rfc3339_micro

from .limits import EVENT_NOTE_MAX_CHARS, EVENT_WORD_MAX_CHARS, LEASE_TIMEOUT_S, WRITE_TIMEOUT_S
from .resources import EVENTS, LEASES, MOEFLEETS, PODS, REVISIONS, key_of, resource_of
from .wire import Request

KubeEffect = (
    CreatePod
    | PatchPodConditions
    | PatchPod
    | DeletePod
    | PatchRevision
    | DeleteRevision
    | Apply
    | EmitEvent
    | ReadLease
    | WriteLease
)

_MANAGER = (("fieldManager", FIELD_MANAGER),)


def request_of(effect: KubeEffect, wall: float, instance: str) -> Request:
    """wall: unix seconds; instance: our pod's name, for Events."""
    match effect:
        case CreatePod():
            return Request(
                verb="POST",
                path=PODS.path(effect.object.namespace),
                query=_MANAGER,
                body=effect.body,
                timeout_s=WRITE_TIMEOUT_S,
            )
        case PatchPodConditions():
            return Request(
                verb="PATCH",
                path=PODS.at(effect.object, "status"),
                query=_MANAGER,
                body=effect.body(),
                content_type="application/strategic-merge-patch+json",
                timeout_s=WRITE_TIMEOUT_S,
            )
        case PatchPod() | PatchRevision():
            kind = PODS if isinstance(effect, PatchPod) else REVISIONS
            return Request(
                verb="PATCH",
                path=kind.at(effect.object),
                query=_MANAGER,
                body=_with_uid(effect.body, effect.uid),
                content_type="application/merge-patch+json",
                timeout_s=WRITE_TIMEOUT_S,
            )
        case DeletePod():
            options: dict[str, Any] = {
                "apiVersion": "v1",
                "kind": "DeleteOptions",
                "preconditions": {"uid": effect.uid},
                "propagationPolicy": "Background",
            }
            if effect.grace_s is not None:
                options["gracePeriodSeconds"] = effect.grace_s
            return Request(
                verb="DELETE", path=PODS.at(effect.object), body=options, timeout_s=WRITE_TIMEOUT_S
            )
        case Apply() if effect.create:
            kind = resource_of(effect.body)
            return Request(
                verb="POST",
                path=kind.path(effect.object.namespace),
                query=_MANAGER,
                body=effect.body,
                # A revision's data must never change by a byte, and a patch writes it anew in the API server's own JSON.
                content_type="application/yaml" if kind == REVISIONS else "application/json",
                timeout_s=WRITE_TIMEOUT_S,
            )
        case Apply():
            return Request(
                verb="PATCH",
                path=resource_of(effect.body).at(key_of(effect.body), effect.subresource),
                query=(*_MANAGER, ("force", "true")),
                body=effect.body,
                content_type="application/apply-patch+yaml",
                timeout_s=WRITE_TIMEOUT_S,
            )
        case DeleteRevision():
            return Request(
                verb="DELETE",
                path=REVISIONS.at(effect.object),
                body={
                    "apiVersion": "v1",
                    "kind": "DeleteOptions",
                    "preconditions": {"uid": effect.uid},
                    "propagationPolicy": "Background",
                },
                timeout_s=WRITE_TIMEOUT_S,
            )
        case EmitEvent():
            return Request(
                verb="POST",
                path=EVENTS.path(effect.object.namespace),
                query=_MANAGER,
                body=event_body(effect, wall, instance),
                timeout_s=WRITE_TIMEOUT_S,
            )
        case ReadLease():
            return Request(verb="GET", path=LEASES.at(effect.object), timeout_s=LEASE_TIMEOUT_S)
        case WriteLease():
            exists = bool((effect.body.get("metadata") or {}).get("resourceVersion"))
            return Request(
                verb="PUT" if exists else "POST",
                path=LEASES.at(effect.object) if exists else LEASES.path(effect.object.namespace),
                query=_MANAGER,
                body=effect.body,
                timeout_s=LEASE_TIMEOUT_S,
            )


def event_body(effect: EmitEvent, wall: float, instance: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        # A name of the API server's choice: one Event for one change, whichever process writes it.
        "metadata": {"generateName": f"{effect.object.name}-", "namespace": effect.object.namespace},
        "eventTime": rfc3339_micro(wall),
        "type": effect.type,
        "reason": effect.reason[:EVENT_WORD_MAX_CHARS],
        "action": effect.action[:EVENT_WORD_MAX_CHARS],
        "note": _cut(effect.message, EVENT_NOTE_MAX_CHARS),
        "reportingController": f"moefleet.io/{FIELD_MANAGER}",
        "reportingInstance": instance[:EVENT_WORD_MAX_CHARS],
        "regarding": {
            "apiVersion": MOEFLEETS.api_version,
            "kind": MOEFLEETS.kind,
            "namespace": effect.object.namespace,
            "name": effect.object.name,
            "uid": effect.fleet_uid,
        },
    }
    if effect.related is not None:
        body["related"] = {
            "apiVersion": PODS.api_version,
            "kind": PODS.kind,
            "namespace": effect.related.namespace,
            "name": effect.related.name,
        }
    return body


def _with_uid(body: Any, uid: str) -> dict[str, Any]:
    return {**body, "metadata": {**(body.get("metadata") or {}), "uid": uid}}


def _cut(text: str, chars: int) -> str:
    return text if len(text) <= chars else text[: chars - 1] + "…"
