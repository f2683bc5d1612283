"""Command lines and configuration files, as a reviewer reads them; `GOLDEN=write` rewrites the golden files."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from moefleet_cluster import flags, node_documents
from moefleet_cluster.node_documents import NodePaths
from moefleet_cluster.spec import ClusterSpec

GOLDEN = Path(__file__).with_name("golden")
STATE, BIN, PKI = Path("/state"), Path("/cache/bin"), Path("/state/plane/pki")
NODE = NodePaths(STATE / "node0", BIN, PKI)


def command(arguments: list[str]) -> str:
    """One flag a line."""
    return "\n".join(" ".join(arguments).split(" --")).replace("\n", "\n--") + "\n"


def document(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


RENDERED = {
    "etcd.flags": command(flags.etcd(STATE, 2379, 2380)),
    "kube-apiserver.flags": command(
        flags.apiserver(PKI, 2379, "127.0.0.1", 6443, audit=None, quick_node_failure=False)
    ),
    "kube-apiserver-nodes.flags": command(
        flags.apiserver(
            PKI,
            2379,
            "10.99.1.1",
            6443,
            audit=(STATE / "policy", STATE / "audit.log"),
            quick_node_failure=True,
        )
    ),
    "kube-controller-manager.flags": command(
        flags.controller_manager(STATE / "kcm.kubeconfig", PKI, quick_node_failure=True)
    ),
    "kube-scheduler.flags": command(flags.scheduler(STATE / "scheduler.kubeconfig")),
    "kwok.flags": command(
        flags.kwok(STATE / "kwok.kubeconfig", Path("/stages.yaml"), quick_node_failure=True)
    ),
    "kubeconfig": flags.kubeconfig("https://127.0.0.1:6443", PKI / "ca.crt", "admin", "TOKEN"),
    "fake-node.json": document(flags.fake_node("fake-0", 8, "nvidia.com/gpu", {"a": "b"})),
    "containerd.toml": node_documents.containerd_toml(NODE, "moefleet.test/pause:1"),
    "cni.json": document(node_documents.cni_conflist(STATE / "ipam")),
    "kubelet-cgroup-v1.json": document(
        node_documents.kubelet_configuration(NODE, "10.99.1.1", "moefleet-7-node0", cgroup_v1=True, dns=True)
    ),
    "kube-proxy.json": document(
        node_documents.kube_proxy_configuration(STATE / "kubeconfig", bridge_filter=True)
    ),
    "Corefile": node_documents.corefile(STATE / "kubeconfig"),
}


@pytest.mark.parametrize("name", RENDERED)
def test_documents_are_what_was_reviewed(name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RENDERED[name])
    assert RENDERED[name] == path.read_text()


def test_on_cgroup_v2_the_kubelet_keeps_refusing_v1() -> None:
    v2 = node_documents.kubelet_configuration(NODE, "10.99.1.1", "m-7-node0", cgroup_v1=False, dns=False)
    assert "failCgroupV1" not in v2
    assert "clusterDNS" not in v2


def test_without_bridge_filter_services_are_masqueraded() -> None:
    proxy = node_documents.kube_proxy_configuration(STATE / "kubeconfig", bridge_filter=False)
    assert proxy["nftables"]["masqueradeAll"] is True


def test_tokens_are_read_as_the_api_server_reads_them() -> None:
    rows = list(
        csv.reader(
            flags.tokens_csv(
                {"op": ("T1", "operator", ["a", "b"]), "n": ("T2", "system:node:n", [])}
            ).splitlines()
        )
    )
    assert rows == [["T1", "operator", "op", "a,b"], ["T2", "system:node:n", "n", ""]]


def test_nodes_have_addresses_below_those_of_pods() -> None:
    addresses = [node_documents.node_address(i) for i in range(node_documents.MAX_NODES)]
    assert addresses[0] == node_documents.GATEWAY
    assert node_documents.FIRST_POD not in addresses
    with pytest.raises(ValueError, match="node 8"):
        node_documents.node_address(8)


SPEC = ClusterSpec(name="moefleet-7", state="/state", programs="/bin", archives=("/a.tar",))


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    SPEC.write(tmp_path / "spec.json")
    assert ClusterSpec.read(tmp_path / "spec.json") == SPEC
    assert SPEC.gpus == 24, "three replicas of 8 GPUs fit on one node"


@pytest.mark.parametrize(
    ("nodes", "gpus", "said"), [(0, 8, "0 nodes"), (9, 8, "9 nodes"), (1, -1, "-1 GPUs")]
)
def test_a_spec_that_cannot_be_is_refused(nodes: int, gpus: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClusterSpec(name="m", state="/s", programs="/b", archives=(), nodes=nodes, gpus=gpus)
