"""The operator with the rights that the chart gives, and no others: all it does is allowed, and what it lacks it says."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import Bench, bench, crd

__all__ = ["bench", "crd"]

CHART = Path(__file__).parents[2] / "charts/moefleet"
RBAC_KINDS = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def install_rights(bench: Bench, **values: str) -> Path:
    """The chart's RBAC in the test's namespace; a kubeconfig of the operator's ServiceAccount."""
    sets = {"operator.image": "none", "gateway.image": "none", **values}
    rendered = subprocess.run(
        [
            str(bench.plane.programs / "helm"),
            "template",
            bench.namespace[-20:].strip("-"),
            str(CHART),
            "--namespace",
            bench.namespace,
            *(part for name, value in sets.items() for part in ("--set", f"{name}={value}")),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert rendered.returncode == 0, rendered.stderr
    objects: list[dict[str, Any]] = [o for o in yaml.safe_load_all(rendered.stdout) if o]
    rights = [o for o in objects if o["kind"] in RBAC_KINDS]
    bench.kubectl.apply(*rights)
    account = next(
        o["metadata"]["name"]
        for o in rights
        if o["kind"] == "ServiceAccount" and o["metadata"]["name"].endswith("-operator")
    )
    token = bench.kubectl("create", "token", account, "--duration=1h").strip()
    admin = json.loads(bench.plane.kubeconfig.read_text())
    admin["users"] = [{"name": user["name"], "user": {"token": token}} for user in admin["users"]]
    path = bench.folder / "operator.kubeconfig"
    path.write_text(json.dumps(admin))
    return path


@pytest.mark.parametrize("scope", ["namespaced", "cluster"])
def test_the_charts_roles_are_enough(bench: Bench, scope: str) -> None:
    kubeconfig = install_rights(bench, scope=scope)
    watched = (bench.namespace,) if scope == "namespaced" else ()
    leader = bench.leader(kubeconfig=kubeconfig, watch_namespaces=watched)
    bench.kubectl.apply(fleet("chat", bench.namespace, mode="External", replicas=2))
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    bench.kubectl("scale", "moefleet", "chat", "--replicas=1")
    bench.wait("one is left", lambda: len(bench.pods("chat")) == 1)
    assert leader.said("RightMissing") == []
    assert leader.said("NotWatched") == []
    assert {write.code for write in bench.writes()} <= {200, 201}
    problems = [line for line in leader.lines() if line.get("level") in ("warning", "error")]
    # The replica that went took its stream along.
    assert [line for line in problems if line["event"] != "telemetry_broken"] == []
    assert leader.stop() == 0


def test_without_the_right_to_see_nodes_it_works_and_says_so(bench: Bench) -> None:
    kubeconfig = install_rights(bench, scope="namespaced", **{"capacity.nodeAccess": "false"})
    leader = bench.leader(kubeconfig=kubeconfig)
    bench.kubectl.apply(fleet("chat", bench.namespace))
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    assert [line["right"] for line in leader.said("RightMissing")] == ["list nodes", "watch nodes"]
    assert [line["kind"] for line in leader.said("NotWatched")] == ["Node"]
    assert leader.metric('moefleet_operator_missing_right{right="list nodes"}') == 1.0
