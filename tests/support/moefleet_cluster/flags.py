"""Pure: the command lines and documents of the control plane."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SERVICE_CIDR = "10.96.0.0/16"
ISSUER = "https://kubernetes.default.svc.cluster.local"
# With the default client rate (20/s) readiness takes 3.5 s longer, and thousands of pods take minutes.
_CLIENT_RATE = ("--kube-api-qps", "500", "--kube-api-burst", "1000")

# Only writes, and each once: reads and watches would be most of the log and cost the API server's time.
AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted", "Panic"],
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Metadata"},
    ],
}


def etcd(folder: Path, client_port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        # Its data is thrown away, so nothing is gained by waiting for the disk.
        "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync", "--name", "e",
        "--listen-client-urls", client, "--advertise-client-urls", client,
        "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"e={peer}",
        "--log-level", "warn", "--snapshot-count", "10000", "--auto-compaction-retention", "5m",
    ]  # fmt: skip


def apiserver(
    pki: Path,
    etcd_port: int,
    address: str,
    port: int,
    *,
    audit: tuple[Path, Path] | None,
    quick_node_failure: bool,
) -> list[str]:
    """`audit` is (policy file, log file)."""
    flags = [
        "--etcd-servers", f"http://127.0.0.1:{etcd_port}",
        # Without a default route the API server exits unless it is told what to advertise.
        "--bind-address", address, "--advertise-address", address, "--secure-port", str(port),
        "--tls-cert-file", str(pki / "apiserver.crt"), "--tls-private-key-file", str(pki / "apiserver.key"),
        "--token-auth-file", str(pki / "tokens.csv"), "--authorization-mode", "Node,RBAC",
        "--service-cluster-ip-range", SERVICE_CIDR, "--allow-privileged=true", "--profiling=false",
        # Endpoints refuse loopback addresses, so `kubernetes.default` has none when the server listens there.
        "--endpoint-reconciler-type", "none" if address.startswith("127.") else "lease",
        "--service-account-issuer", ISSUER,
        "--service-account-key-file", str(pki / "sa.key"), "--service-account-signing-key-file", str(pki / "sa.key"),
        "--kubelet-client-certificate", str(pki / "kubelet-client.crt"),
        "--kubelet-client-key", str(pki / "kubelet-client.key"), "--kubelet-preferred-address-types", "InternalIP",
        "--shutdown-delay-duration", "0s", "--shutdown-watch-termination-grace-period", "0s",
    ]  # fmt: skip
    if audit:
        flags += [
            "--audit-policy-file",
            str(audit[0]),
            "--audit-log-path",
            str(audit[1]),
            "--audit-log-maxsize",
            "0",
        ]
    if quick_node_failure:
        flags += [
            "--default-not-ready-toleration-seconds",
            "5",
            "--default-unreachable-toleration-seconds",
            "5",
        ]
    return flags


def controller_manager(kubeconfig: Path, pki: Path, *, quick_node_failure: bool) -> list[str]:
    flags = [
        "--kubeconfig", str(kubeconfig), "--bind-address", "127.0.0.1", "--secure-port", "0", "--leader-elect=false",
        # Without it the controllers have only the manager's own core role, which is not enough for most of them.
        "--use-service-account-credentials=true", "--service-account-private-key-file", str(pki / "sa.key"),
        "--root-ca-file", str(pki / "ca.crt"), "--profiling=false", *_CLIENT_RATE,
    ]  # fmt: skip
    if quick_node_failure:
        flags += ["--node-monitor-grace-period", "10s", "--node-monitor-period", "1s"]
    return flags


def scheduler(kubeconfig: Path) -> list[str]:
    return [
        "--kubeconfig", str(kubeconfig), "--bind-address", "127.0.0.1", "--secure-port", "0", "--leader-elect=false",
        "--profiling=false", *_CLIENT_RATE,
    ]  # fmt: skip


def kwok(kubeconfig: Path, stages: Path, *, quick_node_failure: bool) -> list[str]:
    # kwok renews after a quarter of this, which must be well inside the controller manager's grace period.
    lease_s = 8 if quick_node_failure else 40
    return [
        "--kubeconfig", str(kubeconfig),
        # Nodes are chosen one by one, so that fake and real nodes live in one cluster.
        "--manage-nodes-with-annotation-selector", "kwok.x-k8s.io/node=fake",
        "--node-lease-duration-seconds", str(lease_s), "--config", str(stages),
    ]  # fmt: skip


def kubeconfig(server: str, certificate_authority: Path, user: str, token: str) -> str:
    """JSON is YAML: every client reads it."""
    cluster = {"server": server, "certificate-authority": str(certificate_authority)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "moefleet",
        "clusters": [{"name": "moefleet", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "moefleet", "context": {"cluster": "moefleet", "user": user}}],
    }
    return json.dumps(document, indent=1) + "\n"


def tokens_csv(users: Mapping[str, tuple[str, str, Sequence[str]]]) -> str:
    """`users`: uid -> (token, user name, groups)."""
    return "".join(
        f'{token},{name},{uid},"{",".join(groups)}"\n' for uid, (token, name, groups) in users.items()
    )


def fake_node(name: str, gpus: int, gpu_resource: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """A node that kwok keeps Ready. Its status is part of the object, since creating a node may set it."""
    size = {"cpu": "128", "memory": "1Ti", "pods": "110", "ephemeral-storage": "1Ti"}
    if gpus:
        size[gpu_resource] = str(gpus)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                **labels,
            },
        },
        "status": {
            "capacity": size,
            "allocatable": size,
            "nodeInfo": {"kubeletVersion": "fake"},
            "phase": "Running",
        },
    }
