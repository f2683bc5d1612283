"""Kubernetes objects, as plain JSON, to facts. Tolerant: a field that is missing or odd gets its default, since fleets
and pods may be of another release than this gateway."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from moefleet_gateway.picking.facts import ColdStart, Fleet, Limits, Replica

LABEL_FLEET = "moefleet.io/fleet"
CONDITION_DRAINING = "moefleet.io/Draining"
PORT_GRPC, PORT_CONTROL = 8500, 8501
KIND = "MoEFleet"

_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def fleet(obj: Mapping[str, Any]) -> Fleet | None:
    """None for an object without a model name: the API server refuses those, a file may have one."""
    meta, spec, status = obj.get("metadata") or {}, obj.get("spec") or {}, obj.get("status") or {}
    model = spec.get("model") or {}
    if not model.get("name") or not meta.get("name"):
        return None
    return Fleet(
        namespace=meta.get("namespace", "default"),
        name=meta["name"],
        uid=meta.get("uid", ""),
        created=meta.get("creationTimestamp") or "",
        model=model["name"],
        engine=(spec.get("engine") or {}).get("type", ""),
        context_length=_whole(model.get("contextLength"), 0),
        limits=limits(spec.get("limits") or {}),
        ready_replicas=_count(status.get("readyReplicas")),
        cold_start=cold_start(status.get("coldStart") or {}),
    )


def limits(raw: Mapping[str, Any]) -> Limits:
    default = Limits()
    return Limits(
        queued_requests=_whole(raw.get("queuedRequests"), default.queued_requests),
        hold_s=duration_s(raw.get("hold"), default.hold_s),
        stream_duration_s=duration_s(raw.get("streamDuration"), default.stream_duration_s),
    )


def cold_start(raw: Mapping[str, Any]) -> ColdStart | None:
    """None: not measured, or said in a way that we do not understand."""
    p50_s, p90_s = duration_s(raw.get("p50"), 0.0), duration_s(raw.get("p90"), 0.0)
    return ColdStart(p50_s, max(p50_s, p90_s)) if p50_s > 0 else None


def replica(pod: Mapping[str, Any]) -> Replica | None:
    """None for a pod that has no address yet, has ended, or belongs to no fleet."""
    meta, spec, status = pod.get("metadata") or {}, pod.get("spec") or {}, pod.get("status") or {}
    name = (meta.get("labels") or {}).get(LABEL_FLEET, "")
    ip = status.get("podIP", "")
    if not name or not ip or not meta.get("uid") or status.get("phase") in ("Succeeded", "Failed"):
        return None
    ports = _ports(spec)
    conditions = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    return Replica(
        uid=meta["uid"],
        name=meta.get("name", ""),
        fleet=f"{meta.get('namespace', 'default')}/{name}",
        fleet_uid=_owner_uid(meta),
        address=join(ip, ports.get("grpc", PORT_GRPC)),
        control=join(ip, ports.get("control", PORT_CONTROL)),
        ready=conditions.get("ContainersReady") == "True",
        draining=bool(meta.get("deletionTimestamp")) or conditions.get(CONDITION_DRAINING) == "True",
    )


def join(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def duration_s(text: object, default: float) -> float:
    """ "15m", "1h30m", "2s", "100ms"; the default for anything else."""
    if not isinstance(text, str) or not text or _PART.sub("", text):
        return default
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


def _owner_uid(meta: Mapping[str, Any]) -> str:
    for owner in meta.get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == KIND:
            return str(owner.get("uid", ""))
    return "no-owner"  # an orphan belongs to no fleet that exists: its uid matches none


def _ports(spec: Mapping[str, Any]) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for container in spec.get("containers") or ()
        for port in container.get("ports") or ()
        if port.get("name") in ("grpc", "control")
    }


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _whole(value: object, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
