"""Service and PDB of a fleet: applied when they are absent or differ from what they should be, and only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.problem import Problem

from .observed import Json
from .steps import ApplyChild


def child(wanted: Mapping[str, Any], live: Json | None) -> ApplyChild | None:
    kind = wanted["kind"]
    name = str(wanted["metadata"]["name"])
    if live is None:
        return ApplyChild(
            name=name,
            reason=reasons.NOT_RECONCILED_YET,
            message=f"{kind} {name} is missing",
            kind=kind,
            body=wanted,
        )
    where = difference(wanted, live)
    if where is None:
        return None
    return ApplyChild(
        name=name,
        reason=reasons.NOT_RECONCILED_YET,
        message=f"{kind} {name} differs at {where}",
        kind=kind,
        body=wanted,
    )


def foreign(kind: str, live: Json | None, fleet_uid: str) -> Problem | None:
    """The object with our name belongs to somebody else: it is left alone, and it is said. One without an owner is an orphan."""
    if live is None or controller_of(live) in ("", fleet_uid):
        return None
    return name_in_use(kind, live)


def name_in_use(kind: str, live: Json) -> Problem:
    meta = live.get("metadata") or {}
    owner = next((o for o in meta.get("ownerReferences") or () if o.get("controller")), None)
    whose = f"belongs to {owner.get('kind')} {owner.get('name')}" if owner else "was made by somebody else"
    return Problem(
        reasons.NAME_IN_USE,
        f"{kind} {meta.get('namespace')}/{meta.get('name')} {whose} and is left as it is; delete it, or rename the fleet",
    )


def controller_of(live: Json) -> str:
    """The uid of the object that owns this one; empty when nobody does."""
    owners = (live.get("metadata") or {}).get("ownerReferences") or ()
    return next((str(o.get("uid") or "") for o in owners if o.get("controller")), "")


def difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """Where `live` lacks something that is wanted; what it has beyond that is somebody else's or a default."""
    # Most of it is the same most of the time, and asking for that is much cheaper than walking through it.
    if wanted == live:
        return None
    # Dicts almost always: asking for the protocol costs several times as much.
    if type(wanted) is dict or isinstance(wanted, Mapping):
        if not (type(live) is dict or isinstance(live, Mapping)):
            return path or "."
        for key, value in wanted.items():
            if key not in live:
                return f"{path}.{key}"
            found = difference(value, live[key], f"{path}.{key}")
            if found is not None:
                return found
        return None
    if isinstance(wanted, list | tuple):
        if not isinstance(live, list | tuple) or len(wanted) != len(live):
            return path
        for index, value in enumerate(wanted):
            found = difference(value, live[index], f"{path}[{index}]")
            if found is not None:
                return found
        return None
    return None if wanted == live else path
