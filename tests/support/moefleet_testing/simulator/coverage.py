"""In which states of a fleet which acts and faults happened: what a run of schedules has reached, and what it has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from moefleet_operator import names

from .api import Api, condition, is_true
from .fleets import FleetStory
from .operators import OperatorProcess
from .rules import live, revision_of

STATES = (
    "absent",
    "deleting",
    "asleep",
    "waking",
    "idle",
    "scaling up",
    "scaling down",
    "draining",
    "rolling",
    "held",
    "failing",
    "no leader",
)

Pairs = Counter[tuple[str, str]]


def states(api: Api, story: FleetStory, operators: Iterable[OperatorProcess]) -> list[str]:
    """All that hold at this moment, as the API server has it."""
    found: list[str] = []
    if not any(o.leading() for o in operators):
        found.append("no leader")
    fleet = api.get("MoEFleet", story.key)
    if fleet is None:
        return [*found, "absent"]
    if "deletionTimestamp" in fleet["metadata"]:
        return [*found, "deleting"]
    status = fleet.get("status") or {}
    desired = status.get("desiredReplicas") or 0
    pods = [p for p in api.pods_of(fleet["metadata"]["uid"]) if "deletionTimestamp" not in p["metadata"]]
    living = [p for p in pods if live(p)]
    ready = sum(1 for p in living if is_true(p, "Ready"))
    if len({revision_of(p) for p in living}) > 1:
        found.append("rolling")
    if any(is_true(p, names.CONDITION_DRAINING) for p in pods):
        found.append("draining")
    if len(living) > desired and "rolling" not in found:
        found.append("scaling down")
    if desired and not ready:
        found.append("waking")
    elif ready < desired:
        found.append("scaling up")
    if condition(fleet, "RolloutHeld").get("status") == "True":
        found.append("held")
    if condition(fleet, "Stalled").get("status") == "True":
        found.append("failing")
    if not desired and not pods:
        found.append("asleep")
    return found or ["idle"]


def table(pairs: Pairs) -> str:
    """One row an act, one column a state."""
    acts = sorted({act for act, _ in pairs})
    width = max((len(a) for a in acts), default=4)
    head = f"{'':<{width}} " + " ".join(f"{s.split()[-1]:>9}" for s in STATES)
    rows = [f"{act:<{width}} " + " ".join(f"{pairs[act, s]:>9}" for s in STATES) for act in acts]
    return "\n".join([head, *rows])
