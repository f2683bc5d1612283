"""Pure: the configuration files of a real node: containerd, its network, kubelet, kube-proxy, coredns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

BRIDGE = "mfbr0"
POD_NETWORK = "10.99.1.0/24"
# The bridge's own address: API server, DNS and node0 listen there. Further nodes have .2 to .9, pods start at .10.
GATEWAY = "10.99.1.1"
FIRST_POD = "10.99.1.10"
MAX_NODES = 8
DNS_DOMAIN = "cluster.local"
# Mounted as memory in each node's own mount namespace: fixed paths of kubelet and containerd that would collide with the host's
# and with other nodes', short enough for unix sockets.
PRIVATE_FOLDERS = ("/var/lib/kubelet", "/run/netns", "/run/containerd", "/var/log/containers")
CONTAINERD_RUN = Path("/run/containerd")
CONTAINERD_SOCKET = CONTAINERD_RUN / "containerd.sock"


@dataclass(frozen=True, slots=True)
class NodePaths:
    folder: Path
    programs: Path
    pki: Path

    @property
    def containerd(self) -> Path:
        return self.folder / "containerd"


def node_address(index: int) -> str:
    """node0 has the bridge's address, so that one node needs no further one."""
    if not 0 <= index < MAX_NODES:
        raise ValueError(f"node {index}: the network {POD_NETWORK} has addresses for {MAX_NODES} nodes")
    return f"10.99.1.{index + 1}"


def containerd_toml(paths: NodePaths, pause_image: str) -> str:
    return f"""version = 3
root = '{paths.containerd}'
state = '{CONTAINERD_RUN}/state'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.internal.v1.tracing', 'io.containerd.tracing.processor.v1.otlp',
  'io.containerd.snapshotter.v1.erofs', 'io.containerd.differ.v1.erofs', 'io.containerd.snapshotter.v1.native']
[grpc]
  address = '{CONTAINERD_SOCKET}'
[ttrpc]
  address = '{CONTAINERD_SOCKET}.ttrpc'
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = '{pause_image}'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ['{paths.programs}/cni']
    conf_dir = '{paths.folder}/cni'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = 'io.containerd.runc.v2'
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = '{paths.programs}/runc'
      SystemdCgroup = false
"""


def cni_conflist(ipam: Path) -> dict[str, Any]:
    """All nodes share one bridge and one address list. containerd adds the loopback plugin by itself."""
    return {
        "cniVersion": "1.0.0",
        "name": "moefleet",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "ipMasq": False,
                # A pod that calls its own Service comes back through the port that it left by.
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(ipam),
                    "ranges": [[{"subnet": POD_NETWORK, "gateway": GATEWAY, "rangeStart": FIRST_POD}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }
        ],
    }


def kubelet_configuration(
    paths: NodePaths,
    address: str,
    cgroup: str,
    *,
    cgroup_v1: bool,
    dns: bool,
    quick_node_failure: bool = False,
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": address,
        "port": 10250,
        "healthzPort": 0,
        "readOnlyPort": 0,
        "failSwapOn": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(paths.pki / "kubelet-client.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "makeIPTablesUtilChains": False,
        "imageGCHighThresholdPercent": 100,
        "resolvConf": str(paths.folder / "resolv.conf"),
        "podLogsDir": str(paths.folder / "podlogs"),
        "volumePluginDir": str(paths.folder / "volumeplugins"),
        "clusterDomain": DNS_DOMAIN,
        # Otherwise the GPUs of the device plugin appear up to 10 s late.
        "nodeStatusUpdateFrequency": "1s",
        "nodeStatusReportFrequency": "1m",
        # It cannot measure file systems in here.
        "localStorageCapacityIsolation": False,
        "maxPods": 200,
        "registerNode": True,
        "enableDebuggingHandlers": True,
    }
    if cgroup_v1:
        document["failCgroupV1"] = False
    if quick_node_failure:
        # Renewed after a quarter of it; the usual 40 s means every 10 s, which is the whole grace of a quick failure.
        document["nodeLeaseDurationSeconds"] = 8
    if dns:
        document["clusterDNS"] = [GATEWAY]
    return document


def kube_proxy_configuration(kubeconfig: Path, *, bridge_filter: bool) -> dict[str, Any]:
    """`bridge_filter`: the kernel passes bridged packets through nftables. Without it an answer from pod to pod on the same bridge
    would skip the translation of Service addresses, so that every Service connection must come from the bridge itself."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "bindAddress": GATEWAY,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": "node0",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        # The limits of conntrack belong to the host and cannot be written from here.
        "conntrack": {"maxPerCore": 0},
        "nftables": {"masqueradeAll": not bridge_filter},
    }


def corefile(kubeconfig: Path) -> str:
    # A pod that ends must leave its name at once: a resolver that believes it for 30 s cuts requests.
    return f""".:53 {{
  bind {GATEWAY}
  kubernetes {DNS_DOMAIN} in-addr.arpa {{
    kubeconfig {kubeconfig}
    pods disabled
    ttl 1
  }}
}}
"""
