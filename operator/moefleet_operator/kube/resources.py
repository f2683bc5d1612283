"""Kinds that we talk to and their paths. A table instead of discovery: we know what we write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moefleet_operator import names
from moefleet_operator.api import API_GROUP, API_VERSION, PLURAL
from moefleet_operator.core.events import Json, Key, Kind


@dataclass(frozen=True, slots=True)
class Resource:
    # "" is the core group.
    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Of one object, or of the collection in one namespace; an empty namespace is the whole cluster."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part]
        return "/".join(parts)

    def at(self, key: Key, subresource: str = "") -> str:
        return self.path(key.namespace, key.name, subresource)


MOEFLEETS: Final = Resource(API_GROUP, API_VERSION.rpartition("/")[2], PLURAL, "MoEFleet")
PODS: Final = Resource("", "v1", "pods", "Pod")
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
SERVICES: Final = Resource("", "v1", "services", "Service")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
PDBS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
REVISIONS: Final = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
QUOTAS: Final = Resource("", "v1", "resourcequotas", "ResourceQuota")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event")
ACCESS_REVIEWS: Final = Resource(
    "authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False
)

_BY_KIND: Final = {
    (resource.api_version, resource.kind): resource
    for resource in (MOEFLEETS, PODS, NODES, SERVICES, CONFIG_MAPS, PDBS, REVISIONS, LEASES, EVENTS)
}

# What the core is told about, and what of it the API server sends us (label selectors, "" is everything).
WATCHED: Final[dict[Kind, Resource]] = {
    "MoEFleet": MOEFLEETS,
    "Pod": PODS,
    "Node": NODES,
    "GatewayPod": PODS,
    "Service": SERVICES,
    "PodDisruptionBudget": PDBS,
    "ControllerRevision": REVISIONS,
    "ResourceQuota": QUOTAS,
}
CHILD_SELECTOR: Final = f"{names.LABEL_MANAGED_BY}={names.MANAGER}"


def resource_of(body: Json) -> Resource:
    found = _BY_KIND.get((str(body.get("apiVersion")), str(body.get("kind"))))
    if found is None:
        raise KeyError(
            f"no path known for {body.get('apiVersion')} {body.get('kind')}: add it to kube/resources"
        )
    return found


def key_of(raw: Json) -> Key:
    metadata = raw.get("metadata") or {}
    return Key(str(metadata.get("namespace") or ""), str(metadata.get("name") or ""))
