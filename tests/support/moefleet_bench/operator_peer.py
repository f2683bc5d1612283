"""What a fleet is measured against: a Deployment of the same pods, and what a user would put around it by hand."""

from __future__ import annotations

import secrets
from typing import Any

from moefleet_operator import names
from moefleet_operator.api import MoEFleet
from moefleet_operator.rendering.pdb import render_pdb
from moefleet_operator.rendering.pod import RenderedPod, render_pod
from moefleet_operator.rendering.service import render_service

from .operator_stubs import PEER_APP

GATE = names.GATE_REGISTERED


def peer(fleet: dict[str, Any], path: str, alike: bool) -> list[tuple[str, dict[str, Any]]]:
    """The Deployment for this fleet, to be created at `path`: its pods are those that the operator would make.

    Alike: with the readiness gate, which the stub registrar then sets (as a load balancer's controller does), and with the
    Service and the PodDisruptionBudget of a fleet. Otherwise bare: no gate, nothing around.
    """
    meta = fleet["metadata"]
    name, namespace, replicas = meta["name"], meta["namespace"], fleet["spec"]["replicas"]
    made = MoEFleet.parse({**fleet, "metadata": {**meta, "uid": "none"}})
    rendered = render_pod(made, gateway=alike, token_sha256=secrets.token_hex(32))
    if not isinstance(rendered, RenderedPod):
        raise TypeError(f"the bench's own fleet cannot be rendered: {rendered}")
    # As many labels as the operator's pods have, and none of its own: it must not take them for orphans.
    select = {"bench/fleet": name}
    labels = {f"bench/{key.rpartition('/')[2]}": v for key, v in rendered.body["metadata"]["labels"].items()}
    labels |= {**select, names.LABEL_NAME: PEER_APP if alike else "bare"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": select},
            "template": {"metadata": {"labels": labels}, "spec": rendered.body["spec"]},
        },
    }
    if not alike:
        return [(path, deployment)]
    service, budget = render_service(made), render_pdb(made, replicas)
    service["spec"]["selector"] = select
    budget["spec"]["selector"] = {"matchLabels": select}
    for child in (service, budget):
        child["metadata"] = {"name": name, "namespace": namespace}
    return [
        (path, deployment),
        (f"/api/v1/namespaces/{namespace}/services", service),
        (f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets", budget),
    ]
