"""Free room for one more replica, by the scheduler's rules: requests of all pods, taints, cordons, node labels.

It decides how many pods are made at once and whether a rollout may surge. The scheduler has the last word: what this
count does not know (affinity between pods, volumes) shows as an unschedulable pod, and then nothing more is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .facts import NodeFacts, Taint
from .observed import Capacity

Room = Mapping[str, int]


def capacity(
    pod_spec: Mapping[str, Any],
    requests: Room,
    nodes: Iterable[NodeFacts],
    used: Mapping[str, Room],
    pending: int,
) -> Capacity:
    """`used`: sum of requests by node. `pending`: pods like this one that wait for a node or are just being made."""
    fits = matching = large = 0
    wanted = {name: amount for name, amount in requests.items() if amount > 0}
    for node in nodes:
        if not _matches(pod_spec, node):
            continue
        matching += 1
        has, taken = node.allocatable, used.get(node.name, {})
        empty, free = [], []
        for name, amount in wanted.items():
            all_of_it = has.get(name, 0)
            empty.append(all_of_it // amount)
            free.append((all_of_it - taken.get(name, 0)) // amount)
        if min(empty) < 1:
            continue
        large += 1
        fits += max(0, min(free))
    return Capacity(max(0, fits - pending), matching, large)


def _matches(pod_spec: Mapping[str, Any], node: NodeFacts) -> bool:
    if not node.open:
        return False
    if any(node.labels.get(k) != v for k, v in (pod_spec.get("nodeSelector") or {}).items()):
        return False
    tolerations = pod_spec.get("tolerations") or ()
    if any(
        t.effect in ("NoSchedule", "NoExecute") and not any(_tolerates(x, t) for x in tolerations)
        for t in node.taints
    ):
        return False
    affinity = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms = required.get("nodeSelectorTerms") or ()
    return not terms or any(_term(term, node.labels) for term in terms)


def _tolerates(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    key = toleration.get("key") or ""
    if toleration.get("operator") == "Exists":
        return key in ("", taint.key)
    return key == taint.key and (toleration.get("value") or "") == taint.value


def _term(term: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    return all(_expression(e, labels) for e in term.get("matchExpressions") or ())


def _expression(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = str(expression.get("key")), expression.get("values") or ()
    match expression.get("operator"):
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
        case _:
            # Gt and Lt: rare; the scheduler decides.
            return True
