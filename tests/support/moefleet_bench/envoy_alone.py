"""The gateway's Envoy without what makes it ours: the same listener and routes, one cluster that is written down."""

from __future__ import annotations

import copy
from typing import Any

from google.protobuf import json_format
from moefleet_gateway.ads import assignment, cluster
from moefleet_gateway.bootstrap import BUFFER, EXT_PROC

CLUSTER = "alone"


def envoy_alone(gateway: dict[str, Any], port: int, admin: str, replicas: tuple[str, ...]) -> dict[str, Any]:
    """From the configuration that the picker wrote. Out: ext_proc and the buffer before it, access log, discovery, and words about them. In: a static cluster."""
    out = copy.deepcopy(gateway)
    del out["dynamic_resources"]
    out["admin"]["address"]["pipe"]["path"] = admin
    out["static_resources"]["clusters"] = [_static_cluster(replicas)]
    (listener,) = out["static_resources"]["listeners"]
    listener["address"]["socket_address"]["port_value"] = port
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = [f for f in manager["http_filters"] if f["name"] not in (BUFFER, EXT_PROC)]
    del manager["access_log"]
    # What Envoy says when the picker is away.
    del manager["local_reply_config"]
    (host,) = manager["route_config"]["virtual_hosts"]
    host["routes"] = [_route(r) for r in host["routes"] if "cluster_header" in r.get("route", {})]
    return out


def _route(route: dict[str, Any]) -> dict[str, Any]:
    action = {name: value for name, value in route["route"].items() if name != "cluster_header"}
    return {**route, "route": {**action, "cluster": CLUSTER}}


def _static_cluster(replicas: tuple[str, ...]) -> dict[str, Any]:
    out: dict[str, Any] = json_format.MessageToDict(cluster(CLUSTER), preserving_proto_field_name=True)
    out["type"] = "STATIC"
    del out["eds_cluster_config"]
    # What override_host falls back to, by itself.
    (override,) = out["load_balancing_policy"]["policies"]
    out["load_balancing_policy"] = override["typed_extension_config"]["typed_config"]["fallback_policy"]
    out["load_assignment"] = json_format.MessageToDict(
        assignment(CLUSTER, replicas), preserving_proto_field_name=True
    )
    return out
