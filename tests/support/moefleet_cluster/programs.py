"""What is built from which Go module, and where it is cached."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GO_MODULES = Path(__file__).with_name("go")
KUBERNETES_VERSION = "1.36.3"
# Without these the programs call themselves v0.0.0, and clients that compare versions misbehave.
_KUBERNETES_FLAGS = (
    f"-X k8s.io/component-base/version.gitVersion=v{KUBERNETES_VERSION}"
    " -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36"
)


@dataclass(frozen=True, slots=True)
class Program:
    """One binary: `package` is built in the folder `go/<module>`; `name` may hold a folder (`cni/bridge`)."""

    name: str
    module: str
    package: str
    link_flags: str = ""
    tags: str = ""
    # Only runc needs C: its seccomp support is libseccomp.
    cgo: bool = False


def _kubernetes(name: str, package: str) -> Program:
    return Program(name, "kubernetes", package, _KUBERNETES_FLAGS)


def _cni(name: str, package: str) -> Program:
    return Program(f"cni/{name}", "cni", f"github.com/containernetworking/plugins/plugins/{package}")


# The order is the order of building: what the tests without root need comes first, Helm 3 (a second Kubernetes client library) last.
PROGRAMS: tuple[Program, ...] = (
    _kubernetes("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    _kubernetes("etcd", "go.etcd.io/etcd/server/v3"),
    _kubernetes("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    _kubernetes("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    _kubernetes("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    _kubernetes("kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    _kubernetes("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
    _kubernetes("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
    _kubernetes("helm", "helm.sh/helm/v4/cmd/helm"),
    Program("containerd", "containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    Program("containerd-shim-runc-v2", "containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
    Program("ctr", "containerd", "github.com/containerd/containerd/v2/cmd/ctr"),
    Program("runc", "runc", "github.com/opencontainers/runc", "-X main.version=1.5.2", "seccomp", cgo=True),
    _cni("bridge", "main/bridge"),
    _cni("host-local", "ipam/host-local"),
    _cni("loopback", "main/loopback"),
    _cni("portmap", "meta/portmap"),
    Program("pause", "pause", "."),
    Program("coredns", "coredns", "github.com/coredns/coredns"),
    Program("helm3", "helm3", "helm.sh/helm/v3/cmd/helm"),
)  # fmt: skip

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl", "kwok")


def lock_hash(modules: Path = GO_MODULES) -> str:
    """Twelve hex digits over every go.mod, go.sum and source file: another lock is another set of programs."""
    digest = hashlib.sha256()
    for path in sorted(modules.rglob("*")):
        if path.suffix in {".mod", ".sum", ".go"}:
            content = path.read_bytes()
            digest.update(f"{path.relative_to(modules)} {len(content)}\n".encode())
            digest.update(content)
    for program in PROGRAMS:
        digest.update(f"{program}\n".encode())
    return digest.hexdigest()[:12]


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moefleet"


def programs_folder(environ: Mapping[str, str] = os.environ) -> Path:
    return cache_folder(environ) / f"bin-{lock_hash()}"


def missing(names: tuple[str, ...] | None = None, folder: Path | None = None) -> list[Program]:
    """The programs of `names` (all when None) that are not built yet.

    Raises:
        LookupError: for a name that this tool does not build.
    """
    known = {p.name: p for p in PROGRAMS}
    unknown = [n for n in names or () if n not in known]
    if unknown:
        raise LookupError(f"unknown programs {unknown}; there are {sorted(known)}")
    where = folder or programs_folder()
    return [p for p in PROGRAMS if (names is None or p.name in names) and not (where / p.name).exists()]
