"""What is watched where: one plan for kopf and for the resync LISTs, so that the two can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moefleet_operator import names
from moefleet_operator.core.events import Kind
from moefleet_operator.kube.access import Right, may_watch
from moefleet_operator.kube.resources import CHILD_SELECTOR, WATCHED, Resource

# Every namespace.
CLUSTER = ""


@dataclass(frozen=True, slots=True)
class Watch:
    kind: Kind
    resource: Resource
    # (CLUSTER,) or names.
    namespaces: tuple[str, ...]
    label_selector: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    kind: Kind
    message: str


@dataclass(frozen=True, slots=True)
class Scope:
    watches: tuple[Watch, ...]
    unavailable: tuple[Unavailable, ...]
    # As CoreSettings.pods_watched wants it.
    pods_watched: str
    # Of all rights that this release needs.
    missing: tuple[Right, ...] = ()


def scope(
    watch_namespaces: Sequence[str], own_namespace: str, gateway: bool, missing: Sequence[Right]
) -> Scope:
    """watch_namespaces: those whose fleets we serve; none named means all."""
    namespaces = tuple(watch_namespaces) or (CLUSTER,)
    pods_watched = "replicas" if watch_namespaces else "all"
    selectors: dict[Kind, str] = {
        "MoEFleet": "",
        "Pod": "" if pods_watched == "all" else names.replica_selector(),
        "Node": "",
        "GatewayPod": names.gateway_selector(),
        "Service": CHILD_SELECTOR,
        "PodDisruptionBudget": CHILD_SELECTOR,
        "ControllerRevision": CHILD_SELECTOR,
        "ResourceQuota": "",
    }
    watches: list[Watch] = []
    unavailable: list[Unavailable] = []
    for kind, resource in WATCHED.items():
        where: tuple[str, ...] = namespaces
        if kind == "Node":
            where = (CLUSTER,)
        elif kind == "GatewayPod":
            where = (own_namespace,)
            if not gateway:
                unavailable.append(Unavailable(kind, "this release has no gateway"))
                continue
        if may_watch(resource, where, missing):
            watches.append(Watch(kind, resource, where, selectors[kind]))
        else:
            place = "the cluster" if where == (CLUSTER,) else "namespaces " + ", ".join(where)
            unavailable.append(
                Unavailable(
                    kind, f"no right to list and watch {resource.plural} in {place}: see the chart's roles"
                )
            )
    return Scope(tuple(watches), tuple(unavailable), pods_watched, tuple(missing))
