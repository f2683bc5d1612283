"""The fleet's Service: for clients inside the cluster that need no gateway, and a name for people. Draining pods leave it."""

from __future__ import annotations

from typing import Any

from moefleet_operator import names
from moefleet_operator.api import MoEFleet

from .pod import owner_reference


def render_service(fleet: MoEFleet) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": names.service_name(fleet.metadata.name),
            "namespace": fleet.metadata.namespace,
            "labels": names.child_labels(fleet.metadata.name),
            "ownerReferences": [owner_reference(fleet)],
        },
        "spec": {
            # Headless: gRPC clients balance over the addresses; one virtual address would pin each to one replica.
            "clusterIP": "None",
            "selector": names.active_labels(fleet.metadata.name),
            # The control port is not here: nobody but operator and gateways has business there, and they use pod addresses.
            "ports": [
                {
                    "name": names.PORT_NAME_GRPC,
                    "port": names.PORT_GRPC,
                    "targetPort": names.PORT_NAME_GRPC,
                    "protocol": "TCP",
                    "appProtocol": "kubernetes.io/h2c",
                },
                {
                    "name": names.PORT_NAME_METRICS,
                    "port": names.PORT_METRICS,
                    "targetPort": names.PORT_NAME_METRICS,
                    "protocol": "TCP",
                },
            ],
        },
    }
