"""The chart on a real API server: rights verb by verb, upgrades that keep the key, removal that keeps fleets or not.

A control plane of its own: removing the CRD would take the fleets of other tests with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from moefleet_cluster import ControlPlane
from moefleet_cluster.kubectl import KubectlError
from moefleet_cluster.programs import programs_folder
from moefleet_operator.handlers.startup import LEASE_NAME
from moefleet_operator.kube.access import Right, rights_needed

CHART = Path(__file__).resolve().parents[2] / "charts/moefleet"
RELEASE, NAMESPACE = "moefleet", "moefleet-system"
HELMS = [h for h in ("helm", "helm3") if (programs_folder() / h).exists()]
HELM_LIMIT_S = 120


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with ControlPlane() as started:
        for name in (NAMESPACE, "team-a", "team-b", "other"):
            started.api("/api/v1/namespaces", "POST", {"metadata": {"name": name}})
        label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
        path = f"/api/v1/namespaces/{NAMESPACE}"
        started.api(path, "PATCH", label, "application/merge-patch+json")
        yield started


@dataclass
class Installed:
    plane: ControlPlane
    program: str

    def helm(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(programs_folder() / self.program), *arguments, "--namespace", NAMESPACE],
            env={**os.environ, "KUBECONFIG": str(self.plane.kubeconfig)},
            capture_output=True, text=True, timeout=HELM_LIMIT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def upgrade(self, case: str, *arguments: str) -> str:
        values = str(CHART / f"ci/{case}-values.yaml")
        return self.helm("upgrade", "--install", RELEASE, str(CHART), "-f", values, *arguments)

    def uninstall(self) -> None:
        self.helm("uninstall", RELEASE)

    def key(self) -> str | None:
        try:
            found = self.plane.api(f"/api/v1/namespaces/{NAMESPACE}/secrets/moefleet-control-key")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return str(found["data"]["key"])

    def crd_is_there(self) -> bool:
        try:
            crd = self.plane.api(
                "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/moefleets.moefleet.io"
            )
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        return "deletionTimestamp" not in crd["metadata"]

    def may(self, account: str, verb: str, resource: str, namespace: str, *, name: str = "") -> bool:
        """resource: `group/plural` or `group/plural/subresource`; the core group is empty."""
        group, plural, *subresource = resource.split("/")
        attributes: dict[str, Any] = {
            "verb": verb,
            "group": group,
            "resource": plural,
            "namespace": namespace,
        }
        if subresource:
            attributes["subresource"] = subresource[0]
        if name:
            attributes["name"] = name
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "resourceAttributes": attributes,
                "user": f"system:serviceaccount:{NAMESPACE}:{RELEASE}-{account}",
                "groups": [
                    "system:serviceaccounts",
                    f"system:serviceaccounts:{NAMESPACE}",
                    "system:authenticated",
                ],
            },
        }
        answer = self.plane.api("/apis/authorization.k8s.io/v1/subjectaccessreviews", "POST", review)
        return bool(answer["status"]["allowed"])


@pytest.fixture(params=HELMS or ["helm"])
def installed(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[Installed]:
    """A clean cluster with the default chart; whatever a test leaves is removed."""
    here = Installed(plane, request.param)
    here.upgrade("default")
    yield here
    if RELEASE in here.helm("list", "--short"):
        here.uninstall()
    plane.kubectl("delete", "crd", "moefleets.moefleet.io", "--ignore-not-found", "--wait")
    plane.kubectl.within(NAMESPACE)("delete", "secret", "moefleet-control-key", "--ignore-not-found")


# The Prometheus operator's kinds are not here, and taking the CRD out of the release would leave it without an owner.
NAMESPACED = ("--set", "podMonitor.enabled=false", "--set", "crds.enabled=true")
FLEETS = "moefleet.io/moefleets"
READ = ("list", "watch")
# account -> resource -> verbs in a namespace with fleets; every other verb of this list has to be refused
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
GRANTED: dict[str, dict[str, tuple[str, ...]]] = {
    "operator": {
        FLEETS: READ,
        f"{FLEETS}/status": ("patch",),
        f"{FLEETS}/scale": (),
        "/pods": (*READ, "get", "create", "patch", "delete"),
        "/pods/status": ("patch",),
        "/pods/exec": (),
        "/pods/eviction": (),
        "/services": (*READ, "get", "create", "patch"),
        "policy/poddisruptionbudgets": (*READ, "get", "create", "patch"),
        "events.k8s.io/events": ("create",),
        "/secrets": (),
        "/configmaps": ("get", "create", "patch"),
        "apps/controllerrevisions": (*READ, "get", "create", "patch", "delete"),
        "/resourcequotas": READ,
        "coordination.k8s.io/leases": (),
        "apps/deployments": (),
    },
    "gateway": {
        FLEETS: READ,
        f"{FLEETS}/status": (),
        "/pods": READ,
        "/pods/status": (),
        "/secrets": (),
        "/configmaps": (),
        "/services": (),
        "events.k8s.io/events": (),
        "coordination.k8s.io/leases": (),
    },
}


def test_rights_verb_by_verb(installed: Installed) -> None:
    for account, resources in GRANTED.items():
        for resource, verbs in resources.items():
            found = tuple(v for v in VERBS if installed.may(account, v, resource, "team-a"))
            assert set(found) == set(verbs), f"{account} on {resource}"
    assert [v for v in VERBS if installed.may("operator", v, "/nodes", "")] == ["list", "watch"]
    assert not [v for v in VERBS if installed.may("gateway", v, "/nodes", "")]


def test_rights_of_the_operator_in_its_own_namespace(installed: Installed) -> None:
    lease = "coordination.k8s.io/leases"
    assert installed.may("operator", "create", lease, NAMESPACE)
    for verb in ("get", "update"):
        assert installed.may("operator", verb, lease, NAMESPACE, name="moefleet-operator")
        assert not installed.may("operator", verb, lease, NAMESPACE, name="somebody-else")
    assert not [v for v in VERBS if installed.may("operator", v, "/secrets", NAMESPACE)]


def test_namespaced_scope_ends_at_its_namespaces(installed: Installed) -> None:
    installed.upgrade("namespaced", *NAMESPACED)
    for account in ("operator", "gateway"):
        for namespace, expected in (("team-a", True), ("team-b", True), ("other", False)):
            assert installed.may(account, "list", "/pods", namespace) is expected, f"{account} in {namespace}"
            assert installed.may(account, "watch", FLEETS, namespace) is expected, f"{account} in {namespace}"
    assert installed.may("operator", "create", "/pods", "team-b")
    assert not installed.may("operator", "list", "/nodes", "")


def test_pods_are_admitted_under_restricted_pod_security(installed: Installed) -> None:
    """No node is here to run them; being created is what the namespace's level decides."""
    kubectl = installed.plane.kubectl.within(NAMESPACE)
    for part in ("operator", "gateway"):
        kubectl(
            "wait", f"deployment/{RELEASE}-{part}", "--for=jsonpath={.status.replicas}=2", "--timeout=30s"
        )


def test_an_upgrade_keeps_the_key_and_rolls_nothing(installed: Installed) -> None:
    deployments = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
    key = installed.key()
    assert key
    before = {
        d["metadata"]["name"]: d["metadata"]["generation"] for d in installed.plane.api(deployments)["items"]
    }
    installed.upgrade("default")
    after = {
        d["metadata"]["name"]: d["metadata"]["generation"] for d in installed.plane.api(deployments)["items"]
    }
    assert installed.key() == key
    assert after == before


def fleet(installed: Installed) -> None:
    manifest = {
        "apiVersion": "moefleet.io/v1alpha1",
        "kind": "MoEFleet",
        "metadata": {"name": "kept"},
        "spec": {"model": {"name": "m", "source": "file:///m"}, "engine": {"image": "i"}},
    }
    installed.plane.kubectl.within("team-a").apply(manifest)


def test_uninstall_keeps_fleets_and_key_and_a_new_install_takes_them_over(installed: Installed) -> None:
    key = installed.key()
    fleet(installed)
    installed.uninstall()
    assert installed.crd_is_there()
    assert installed.plane.kubectl.within("team-a").json("get", "moefleet", "kept")
    assert installed.key() == key
    installed.upgrade("default")
    assert installed.key() == key, "with another key nobody could drain the replicas that run"


def test_without_keep_uninstall_takes_fleets_and_key(installed: Installed) -> None:
    installed.upgrade("default", "--set", "crds.keep=false")
    fleet(installed)
    installed.uninstall()
    installed.plane.kubectl("wait", "--for=delete", "crd/moefleets.moefleet.io", "--timeout=30s")
    with pytest.raises(KubectlError, match=r"doesn't have a resource type|NotFound|not found"):
        installed.plane.kubectl.within("team-a")("get", "moefleet", "kept")
    assert installed.key() is None
    left = json.loads(
        installed.plane.kubectl(
            "get", "clusterroles,clusterrolebindings", "-l", "app.kubernetes.io/name=moefleet", "-o", "json"
        )
    )
    assert left["items"] == []


def resource(right: Right) -> str:
    return "/".join([right.group, right.resource] + ([right.subresource] if right.subresource else []))


def test_the_operator_has_every_right_that_it_asks_for(installed: Installed) -> None:
    """The list is the operator's own; it asks for the same at its start and says what is missing."""
    for namespaces, case in (((), "default"), (("team-a", "team-b"), "namespaced")):
        installed.upgrade(case, *NAMESPACED if case == "namespaced" else ())
        lacking = [
            str(right)
            for right in rights_needed(namespaces, NAMESPACE, LEASE_NAME)
            if not installed.may("operator", right.verb, resource(right), right.namespace, name=right.name)
        ]
        # The namespaced case has capacity.nodeAccess false: free GPUs stay unknown, and the operator lives with it.
        assert lacking == ([] if case == "default" else ["list nodes", "watch nodes"])
