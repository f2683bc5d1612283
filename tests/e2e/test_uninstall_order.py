"""Removal in any order leaves no orphan; what a user asked to keep is kept. Runs last: it takes the release away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moefleet_e2e.fixtures import fresh_namespace
from moefleet_e2e.fleets import simulated
from moefleet_e2e.kube import CommandError, Kube, eventually, ready, run
from moefleet_e2e.release import Release
from moefleet_load.stream import End, channel, generate, token_request

CRD = "moefleets.moefleet.io"
# All that a release or a fleet makes in a namespace.
KINDS = (
    "pods,services,endpointslices.discovery.k8s.io,poddisruptionbudgets.policy,configmaps,secrets,serviceaccounts,"
    "leases.coordination.k8s.io,deployments.apps,replicasets.apps,networkpolicies.networking.k8s.io,"
    "roles.rbac.authorization.k8s.io,rolebindings.rbac.authorization.k8s.io"
)
# Kubernetes itself puts these into every namespace.
NATIVE = {"configmap/kube-root-ca.crt", "serviceaccount/default"}
KEPT = {"secret/moefleet-control-key"}


def inside(namespace: str) -> set[str]:
    return set(run("kubectl", "-n", namespace, "get", KINDS, "-o", "name").split()) - NATIVE


def cluster_wide(release: Release) -> set[str]:
    kinds = "clusterroles.rbac.authorization.k8s.io,clusterrolebindings.rbac.authorization.k8s.io"
    return set(
        run("kubectl", "get", kinds, "-l", f"app.kubernetes.io/instance={release.name}", "-o", "name").split()
    )


def exists(kind: str, name: str) -> bool:
    try:
        run("kubectl", "get", kind, name)
    except CommandError as error:
        if "NotFound" not in str(error) and "not found" not in str(error):
            raise
        return False
    return True


async def nothing_left(release: Release, spaces: list[Kube], kept: set[str]) -> None:
    for space in spaces:
        await eventually(
            f"nothing in {space.namespace}",
            lambda space=space: inside(space.namespace) == set(),  # type: ignore[misc]
            120,
            lambda space=space: str(inside(space.namespace)),  # type: ignore[misc]
        )
    await eventually(
        f"{kept or 'nothing'} in {release.namespace}",
        lambda: inside(release.namespace) == kept,
        120,
        lambda: str(inside(release.namespace)),
    )
    assert cluster_wide(release) == set()


@pytest.fixture
def second(kube: Kube) -> Iterator[Kube]:
    """A namespace that is removed with a fleet in it."""
    made = fresh_namespace(f"{kube.namespace}-second")
    yield made
    made.remove()


async def fleets_go_while_the_operator_lives(kube: Kube, second: Kube) -> None:
    """One fleet by itself, one with its namespace."""
    kube.apply(simulated("first", kube.namespace))
    second.apply(simulated("within", second.namespace))
    await ready(kube, "first")
    await ready(second, "within")
    kube.delete("moefleet", "first")
    second.remove()
    await eventually(
        "nothing of the deleted fleet",
        lambda: inside(kube.namespace) == set(),
        120,
        lambda: str(inside(kube.namespace)),
    )
    await eventually("no namespace", lambda: not exists("namespace", second.namespace), 120)


async def test_with_keep_the_fleets_outlive_the_release_and_a_new_one_adopts_them(
    kube: Kube, second: Kube, release: Release
) -> None:
    release.values = {"crds": {"keep": True}}
    release.upgrade()
    await fleets_go_while_the_operator_lives(kube, second)
    kube.apply(simulated("kept", kube.namespace))
    await ready(kube, "kept")
    pods = {p["metadata"]["uid"] for p in kube.replicas("kept")}

    release.uninstall()
    assert exists("crd", CRD)
    assert kube.get("moefleet", "kept")
    await eventually(
        "nothing of the release but its key",
        lambda: inside(release.namespace) == KEPT,
        120,
        lambda: str(inside(release.namespace)),
    )
    assert {p["metadata"]["uid"] for p in kube.ready_replicas("kept")} == pods

    release.upgrade("--take-ownership")
    await ready(kube, "kept")
    assert {p["metadata"]["uid"] for p in kube.replicas("kept")} == pods, (
        "the new release replaced replicas that served"
    )
    async with channel(release.gateway_address()) as opened:
        got = await generate(opened, token_request("again", f"{kube.namespace}/kept", 10, 5))
    assert got.end is End.OK, got

    # The release first, then the fleets: their owner references are enough.
    release.uninstall()
    kube.delete("moefleet", "kept")
    await nothing_left(release, [kube], KEPT)
    assert exists("crd", CRD)


async def test_without_keep_uninstall_takes_everything(kube: Kube, second: Kube, release: Release) -> None:
    release.values = {"crds": {"keep": False}}
    release.upgrade("--take-ownership")
    await fleets_go_while_the_operator_lives(kube, second)
    kube.apply(simulated("gone", kube.namespace))
    await ready(kube, "gone")
    release.uninstall()
    await eventually("no CRD", lambda: not exists("crd", CRD), 60)
    await nothing_left(release, [kube], set())
