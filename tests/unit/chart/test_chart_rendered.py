"""What `helm template` gives, as golden files that a reviewer reads as the product, and what holds for every rendering.

GOLDEN=write rewrites the files. Each Helm that is there is asked, and all must give the same objects.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from moefleet_cluster.programs import programs_folder
from moefleet_operator import names
from moefleet_operator.api.crd import custom_resource_definition
from moefleet_operator.handlers.startup import LEASE_NAME
from moefleet_operator.kube.access import Right, rights_needed

CHART = Path(__file__).resolve().parents[3] / "charts/moefleet"
GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p.stem.removesuffix("-values") for p in (CHART / "ci").glob("*-values.yaml"))
Objects = list[dict[str, Any]]
RANDOM_KEY = "made once, of 32 random bytes"


def helms() -> dict[str, str]:
    """By our own build's names; a helm of the PATH counts as well."""
    found = {
        name: str(programs_folder() / name)
        for name in ("helm", "helm3")
        if (programs_folder() / name).exists()
    }
    on_path = shutil.which("helm")
    return found or ({"helm": on_path} if on_path else {})


HELMS = helms()
needs_helm = pytest.mark.skipif(
    not HELMS, reason="no helm: build it with `python -m moefleet_cluster build helm helm3`"
)
pytestmark = needs_helm
any_helm = pytest.mark.parametrize("helm", HELMS or {"helm": ""})


def helm_run(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELMS[helm], *arguments], capture_output=True, text=True, timeout=60, check=False)


def render(case: str, *arguments: str, helm: str | None = None) -> Objects:
    # A Helm without a cluster believes in the Kubernetes that it was built with, and Helm 3 built without flags in 1.20.
    done = helm_run(
        helm or next(iter(HELMS)), "template", "moefleet", str(CHART), "--namespace", "moefleet-system",
        "--kube-version", "1.33.0", "-f", str(CHART / f"ci/{case}-values.yaml"), *arguments,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    objects = [o for o in yaml.safe_load_all(done.stdout) if o]
    for found in objects:
        if found["kind"] == "Secret":
            assert len(found["data"]["key"]) == 60, "base64 of the base64 of 32 bytes"
            found["data"]["key"] = RANDOM_KEY
    return sorted(
        objects, key=lambda o: (o["kind"], o["metadata"].get("namespace", ""), o["metadata"]["name"])
    )


def of_kind(objects: Objects, kind: str) -> Objects:
    return [o for o in objects if o["kind"] == kind]


def pod_specs(objects: Objects) -> list[tuple[str, dict[str, Any]]]:
    pods = [(o["metadata"]["name"], o["spec"]["template"]["spec"]) for o in of_kind(objects, "Deployment")]
    return pods + [(o["metadata"]["name"], o["spec"]) for o in of_kind(objects, "Pod")]


@any_helm
@pytest.mark.parametrize("case", CASES)
def test_rendered_as_reviewed(case: str, helm: str) -> None:
    objects = [o for o in render(case, helm=helm) if o["kind"] != "CustomResourceDefinition"]
    text = yaml.safe_dump_all(objects, sort_keys=False, width=120)
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert list(yaml.safe_load_all(path.read_text())) == objects, (
        f"{path.name} differs: GOLDEN=write, and read the diff"
    )


@any_helm
@pytest.mark.parametrize("case", CASES)
def test_lint(case: str, helm: str) -> None:
    done = helm_run(helm, "lint", "--strict", str(CHART), "-f", str(CHART / f"ci/{case}-values.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@any_helm
def test_the_crd_is_whole_and_kept(helm: str) -> None:
    (crd,) = of_kind(render("default", helm=helm), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert crd["spec"] == custom_resource_definition()["spec"]
    objects = render("default", "--set", "crds.keep=false", helm=helm)
    assert "resource-policy" not in json.dumps(objects)
    assert not of_kind(
        render("default", "--set", "crds.enabled=false", helm=helm), "CustomResourceDefinition"
    )


@pytest.mark.parametrize("case", CASES)
def test_every_pod_runs_restricted(case: str) -> None:
    for name, spec in pod_specs(render(case)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"], name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not any(key in spec for key in ("hostNetwork", "hostPID", "hostIPC")), name
        assert spec["enableServiceLinks"] is False, name
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"secret", "emptyDir"}, name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, container["name"]
            assert container["resources"]["requests"], container["name"]
            assert container["resources"]["limits"]["memory"], container["name"]
            variables = [v["name"] for v in container.get("env", [])]
            assert len(variables) == len(set(variables)), "server-side apply refuses doubles"


@pytest.mark.parametrize("case", CASES)
def test_no_rule_has_a_star_and_none_reads_secrets(case: str) -> None:
    for role in of_kind(render(case), "ClusterRole") + of_kind(render(case), "Role"):
        for rule in role["rules"]:
            assert "*" not in json.dumps(rule), role["metadata"]["name"]
            assert "secrets" not in rule["resources"], role["metadata"]["name"]
            assert rule["verbs"], role["metadata"]["name"]


def granted(objects: Objects, account: str) -> set[Right]:
    """Everything that roles bound to this ServiceAccount allow, one right for each verb, resource and name."""
    found: set[Right] = set()
    for binding in of_kind(objects, "ClusterRoleBinding") + of_kind(objects, "RoleBinding"):
        if account not in {subject["name"] for subject in binding["subjects"]}:
            continue
        where = binding["metadata"].get("namespace", "")
        kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
        (role,) = [
            r
            for r in of_kind(objects, kind)
            if r["metadata"]["name"] == name
            and (kind == "ClusterRole" or r["metadata"]["namespace"] == where)
        ]
        for rule in role["rules"]:
            found |= {
                Right(verb, group, *_split(resource), where, allowed)
                for verb in rule["verbs"]
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for allowed in rule.get("resourceNames", [""])
            }
    return found


def _split(resource: str) -> tuple[str, str]:
    plural, _, subresource = resource.partition("/")
    return plural, subresource


@pytest.mark.parametrize(
    ("case", "namespaces", "sees_nodes"), [("default", (), True), ("namespaced", ("team-a", "team-b"), False)]
)
def test_the_operator_may_do_what_it_does_and_nothing_else(
    case: str, namespaces: tuple[str, ...], sees_nodes: bool
) -> None:
    where = namespaces or ("",)
    needed = {
        right
        for right in rights_needed(namespaces, "moefleet-system", LEASE_NAME)
        if sees_nodes or right.resource != "nodes"
    }
    needed.add(Right("create", "authorization.k8s.io", "selfsubjectaccessreviews"))
    # For clusters that check owner references; nothing of ours is ever sent there.
    needed |= {Right("update", "moefleet.io", "moefleets", "finalizers", namespace) for namespace in where}
    assert granted(render(case), "moefleet-operator") == needed


@pytest.mark.parametrize(("case", "where"), [("default", ("",)), ("namespaced", ("team-a", "team-b"))])
def test_the_gateway_may_watch_fleets_and_pods_and_nothing_else(case: str, where: tuple[str, ...]) -> None:
    assert granted(render(case), "moefleet-gateway") == {
        Right(verb, group, resource, "", namespace)
        for verb in ("list", "watch")
        for group, resource in (("moefleet.io", "moefleets"), ("", "pods"))
        for namespace in where
    }


def test_namespaced_scope_grants_nothing_beyond_its_namespaces() -> None:
    objects = render("namespaced")
    (cluster_role,) = of_kind(objects, "ClusterRole")
    assert [r["resources"] for r in cluster_role["rules"]] == [["selfsubjectaccessreviews"]]
    where = {o["metadata"]["namespace"] for o in of_kind(objects, "Role")}
    assert where == {"moefleet-system", "team-a", "team-b"}
    (variable,) = {
        v["value"]
        for _, spec in pod_specs(objects)
        for c in [*spec.get("initContainers", []), *spec["containers"]]
        for v in c.get("env", [])
        if v["name"] == "MOEFLEET_WATCH_NAMESPACES"
    }
    assert variable == "team-a,team-b"


def test_the_operator_finds_the_gateway_by_the_labels_of_the_contract() -> None:
    (gateway,) = [
        d for d in of_kind(render("default"), "Deployment") if d["metadata"]["name"].endswith("gateway")
    ]
    labels = gateway["spec"]["template"]["metadata"]["labels"]
    assert names.gateway_labels().items() <= labels.items()
    ports = {
        p["name"]: p["containerPort"]
        for c in [
            *gateway["spec"]["template"]["spec"]["initContainers"],
            *gateway["spec"]["template"]["spec"]["containers"],
        ]
        for p in c["ports"]
    }
    assert ports == {
        "grpc": names.GATEWAY_PORT_GRPC,
        "control": names.GATEWAY_PORT_CONTROL,
        "metrics": names.GATEWAY_PORT_METRICS,
        "health": names.GATEWAY_PORT_HEALTH,
    }


def test_the_picker_starts_before_envoy_and_the_pod_outlives_its_streams() -> None:
    objects = render("default", "--set", "gateway.drainSeconds=77")
    spec = dict(pod_specs(objects))["moefleet-gateway"]
    (picker,) = spec["initContainers"]
    assert picker["restartPolicy"] == "Always"
    assert picker["startupProbe"]["grpc"]["service"] == "liveness", (
        "readiness waits for Envoy, which starts after it"
    )
    assert spec["terminationGracePeriodSeconds"] > 77


def test_the_openai_edge_is_a_sidecar_that_outlives_envoy_and_shows_nothing_but_its_paths() -> None:
    off = render("default")
    assert "MOEFLEET_OPENAI_LISTEN" not in json.dumps(off)
    objects = render("default", "--set", "gateway.openai.enabled=true")
    spec = dict(pod_specs(objects))["moefleet-gateway"]
    picker, smg = spec["initContainers"]
    assert (picker["name"], smg["name"], smg["restartPolicy"]) == ("picker", "smg", "Always")
    # SMG's control interface answers whoever reaches it: it has no port of the pod.
    assert "ports" not in smg
    (envoy,) = spec["containers"]
    assert {p["name"]: p["containerPort"] for p in envoy["ports"]} == {"grpc": 8080, "openai": 8081}
    for container in (picker, smg, envoy):
        env = {v["name"]: v.get("value") for v in container["env"]}
        assert env["MOEFLEET_OPENAI_LISTEN"] == "[::]:8081", container["name"]
    mounts = {
        c["name"]: {m["name"] for m in c["volumeMounts"]} & {"tokenizers", "control-key", "run"}
        for c in (picker, smg)
    }
    assert mounts == {"picker": {"tokenizers", "control-key", "run"}, "smg": {"tokenizers"}}
    (service,) = [s for s in of_kind(objects, "Service") if s["metadata"]["name"] == "moefleet-gateway"]
    assert [(p["name"], p["port"], p["targetPort"]) for p in service["spec"]["ports"]] == [
        ("grpc", 8080, "grpc"),
        ("openai", 8081, "openai"),
    ]
    (policy,) = [p for p in of_kind(objects, "NetworkPolicy") if p["metadata"]["name"] == "moefleet-gateway"]
    assert [[p["port"] for p in rule["ports"]] for rule in policy["spec"]["ingress"]] == [
        [8080, 8081],
        [8502],
        [9091],
    ]


def test_an_upgrade_that_changes_nothing_restarts_nothing() -> None:
    """Versions and chart labels stay out of the pods, so that only images and settings roll them."""
    for deployment in of_kind(render("default"), "Deployment"):
        assert "helm.sh/chart" not in deployment["spec"]["template"]["metadata"]["labels"]


def test_without_a_gateway_nothing_of_it_is_left() -> None:
    objects = render("default", "--set", "gateway.enabled=false", "--set", "gateway.image=")
    assert "gateway" not in {o["metadata"]["labels"]["app.kubernetes.io/component"] for o in objects}
    operator = dict(pod_specs(objects))["moefleet-operator"]
    env = {v["name"]: v.get("value") for v in operator["containers"][0]["env"]}
    assert env["MOEFLEET_GATEWAY_ENABLED"] == "false"


@any_helm
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "operator.image="], "operator.image is required"),
        (["--set", "gateway.image="], "gateway.image is required"),
        (["--set", "operator.replica=3"], "replica"),
        (["--set", "gateway.drainSeconds=-1"], "drainSeconds"),
        (["--set", "gateway.replicaSilenceSeconds=1"], "replicaSilenceSeconds"),
        (["--set", "scope=galaxy"], "scope"),
        (["--set", "watchNamespaces={a}"], "watchNamespaces needs scope: namespaced"),
    ],
)
def test_wrong_values_are_refused_with_a_reason(helm: str, arguments: list[str], words: str) -> None:
    done = helm_run(
        helm, "template", "moefleet", str(CHART), "--kube-version", "1.33.0",
        "-f", str(CHART / "ci/default-values.yaml"), *arguments,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr
