"""Service and PDB of a fleet: applied when they are absent or differ from what they should be, and only then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moefleet_operator.api import conditions as reasons

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


def difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """Where `live` lacks something that is wanted; what it has beyond that is somebody else's or a default."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
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
