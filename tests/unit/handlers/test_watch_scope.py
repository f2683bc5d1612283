"""What is watched, from settings and rights: everything in a cluster, less in namespaces, and a lack is said."""

from __future__ import annotations

from moefleet_operator.handlers.scope import Scope, Unavailable, scope
from moefleet_operator.kube.access import Right


def watched(found: Scope) -> dict[str, tuple[tuple[str, ...], str]]:
    return {watch.kind: (watch.namespaces, watch.label_selector) for watch in found.watches}


def test_the_whole_cluster_with_every_pod_so_that_free_gpus_are_known() -> None:
    found = scope((), "ops", True, ())
    assert watched(found) == {
        "MoEFleet": (("",), ""),
        "Pod": (("",), ""),
        "Node": (("",), ""),
        "GatewayPod": (("ops",), "app.kubernetes.io/name=moefleet,app.kubernetes.io/component=gateway"),
        "Service": (("",), "app.kubernetes.io/managed-by=moefleet-operator"),
        "PodDisruptionBudget": (("",), "app.kubernetes.io/managed-by=moefleet-operator"),
        "ControllerRevision": (("",), "app.kubernetes.io/managed-by=moefleet-operator"),
        "ResourceQuota": (("",), ""),
    }
    assert (found.pods_watched, found.unavailable) == ("all", ())


def test_some_namespaces_with_our_own_pods_only() -> None:
    found = scope(("a", "b"), "ops", True, ())
    assert watched(found)["Pod"] == (("a", "b"), "app.kubernetes.io/name=moefleet-replica")
    assert watched(found)["GatewayPod"][0] == ("ops",)
    assert found.pods_watched == "replicas"


def test_a_missing_right_makes_a_kind_unknown_and_says_so() -> None:
    found = scope((), "ops", True, (Right("watch", "", "nodes"),))
    assert "Node" not in watched(found)
    assert found.unavailable == (
        Unavailable("Node", "no right to list and watch nodes in the cluster: see the chart's roles"),
    )


def test_without_a_gateway_its_pods_are_not_watched() -> None:
    found = scope((), "ops", False, ())
    assert "GatewayPod" not in watched(found)
    assert found.unavailable == (Unavailable("GatewayPod", "this release has no gateway"),)
