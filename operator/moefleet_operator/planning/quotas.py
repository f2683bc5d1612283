"""ResourceQuotas of the namespace: room that the nodes may have and the fleet may not use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from .observed import Capacity
from .quantity import vector

# A quota names a resource as requests.<name>; these also, or only, by their plain name. Limits are left to the API server.
_PLAIN = ("cpu", "memory", "ephemeral-storage", "pods")


def within_quotas(
    capacity: Capacity, requests: Mapping[str, int], quotas: Iterable[Mapping[str, Any]], creating: int
) -> Capacity:
    """`capacity` with fewer that fit where a quota leaves fewer. `creating`: pods under way that no quota has counted yet.

    Quotas with scopes are left out: which pods they count is the API server's to say, and its refusal is a condition.
    """
    fits, name = capacity.fits, ""
    for quota in quotas:
        spec = quota.get("spec") or {}
        if spec.get("scopes") or spec.get("scopeSelector"):
            continue
        left = _left(quota, requests)
        if left is not None and (fits is None or max(0, left - creating) < fits):
            fits, name = max(0, left - creating), str((quota.get("metadata") or {}).get("name") or "")
    return replace(capacity, fits=fits, quota=name) if name else capacity


def _left(quota: Mapping[str, Any], requests: Mapping[str, int]) -> int | None:
    """How many more pods like this one; None: it limits nothing that such a pod asks for."""
    status = quota.get("status") or {}
    hard = vector(status.get("hard") or (quota.get("spec") or {}).get("hard") or {})
    used = vector(status.get("used") or {})
    found: list[int] = []
    for resource, amount in requests.items():
        if amount <= 0:
            continue
        spellings = [f"requests.{resource}", *([resource] if resource in _PLAIN else ())]
        if resource == "pods":
            spellings.append("count/pods")
        found += [
            max(0, hard[spelling] - used.get(spelling, 0)) // amount
            for spelling in spellings
            if spelling in hard
        ]
    return min(found, default=None)
