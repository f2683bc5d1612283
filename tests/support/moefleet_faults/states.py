"""Whether a wanted state has been reached, by what any user can see. Pure but for `look`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from moefleet_e2e.kube import Kube, Object, condition, is_ready, run
from moefleet_e2e.release import Release

from .scenario import Wanted

# What a fleet or a release makes in a namespace, and that Kubernetes makes there itself.
KINDS = (
    "pods,services,poddisruptionbudgets.policy,configmaps,secrets,serviceaccounts,leases.coordination.k8s.io,"
    "deployments.apps,replicasets.apps,networkpolicies.networking.k8s.io,roles.rbac.authorization.k8s.io,"
    "rolebindings.rbac.authorization.k8s.io"
)
NATIVE = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
# With crds.keep the control key stays as well: replicas that outlive the release know it.
KEPT = {"secret/moefleet-control-key"}


@dataclass(frozen=True, slots=True)
class View:
    fleet: Object | None
    pods: tuple[Object, ...]
    system: tuple[Object, ...] = ()
    # Names of what is left in the namespaces of fleet and release; only looked at when it counts.
    left: frozenset[str] = frozenset()

    @property
    def revisions(self) -> frozenset[str]:
        return frozenset(str(p["metadata"]["labels"]["moefleet.io/revision"]) for p in self.pods)

    @property
    def restarts(self) -> dict[str, int]:
        """By pod uid."""
        return {
            str(p["metadata"]["uid"]): sum(
                c["restartCount"]
                for kind in ("containerStatuses", "initContainerStatuses")
                for c in p["status"].get(kind) or []
            )
            for p in (*self.pods, *self.system)
        }


def look(kube: Kube, release: Release, fleet: str, wanted: Wanted) -> View:
    left: set[str] = set()
    if wanted.gone:
        for space in (kube.namespace, release.namespace):
            left |= {
                f"{space}:{name}"
                for name in set(run("kubectl", "-n", space, "get", KINDS, "-o", "name").split()) - NATIVE
            }
    system: list[Any] = []
    if wanted.release_back or wanted.restarted:
        system = json.loads(
            run(
                "kubectl",
                "-n",
                release.namespace,
                "get",
                "pods",
                "-l",
                "app.kubernetes.io/name=moefleet",
                "-o",
                "json",
            )
        )["items"]
    return View(kube.get("moefleet", fleet), tuple(kube.replicas(fleet)), tuple(system), frozenset(left))


def missing(view: View, wanted: Wanted, before: View, kept: frozenset[str] = frozenset()) -> str:
    """What is not yet as wanted, in a few words; empty when all is."""
    if wanted.gone:
        return f"left: {sorted(view.left - kept)[:5]}" if view.left - kept else ""
    if wanted.restarted and not any(
        uid not in view.restarts or view.restarts[uid] > times for uid, times in before.restarts.items()
    ):
        return "nothing has begun again"
    ready = [p for p in view.pods if is_ready(p)]
    if len(ready) != wanted.replicas:
        return f"{len(ready)} of {wanted.replicas} ready"
    if len(view.pods) != wanted.replicas and wanted.off_node is None:
        return f"{len(view.pods)} pods, wanted {wanted.replicas}"
    if condition(view.fleet, "Ready") != "True":
        return "the fleet is not Ready"
    if wanted.off_node is not None and any(
        p["spec"].get("nodeName") == f"node{wanted.off_node}" for p in ready
    ):
        return f"a replica counts as ready on node{wanted.off_node}"
    if wanted.rolled and view.revisions & before.revisions:
        return f"pods of an old revision: {sorted(view.revisions & before.revisions)}"
    if (wanted.rolled or wanted.settled) and len(view.revisions) != 1:
        return f"{len(view.revisions)} revisions: {sorted(view.revisions)}"
    if wanted.settled:
        found = view.fleet or {}
        status = found.get("status") or {}
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return "the operator has not seen the newest spec"
        if {status.get("revision")} != set(view.revisions):
            return f"status.revision {status.get('revision')}, pods {sorted(view.revisions)}"
    if wanted.release_back and not (view.system and all(is_ready(p) for p in view.system)):
        return "operator or gateway pods are not all ready"
    return ""
