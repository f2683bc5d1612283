"""A real control plane without root: etcd, API server, controller manager, scheduler, and kwok when asked."""

from __future__ import annotations

import json
import secrets
import shutil
import ssl
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from . import flags
from .kubectl import Kubectl
from .pki import make as make_pki
from .ports import free_port
from .processes import Processes
from .programs import CONTROL_PLANE, missing, programs_folder

READY_LIMIT_S = 90.0
# With open watches the API server may take more than 8 s to end on SIGTERM; its data is thrown away.
STOP_GRACE_S = 2.0
STAGES = Path(__file__).with_name("kwok_stages.yaml")
# user name and groups by the name of the kubeconfig file
_USERS: dict[str, tuple[str, Sequence[str]]] = {
    "admin": ("admin", ["system:masters"]),
    "kcm": ("system:kube-controller-manager", []),
    "scheduler": ("system:kube-scheduler", []),
    "kwok": ("kwok", ["system:masters"]),
}


@dataclass(frozen=True, slots=True)
class AuditedWrite:
    """One answered write request."""

    user: str
    user_agent: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str
    code: int


@dataclass
class ControlPlane:
    """`with ControlPlane(kwok=True) as plane: plane.kubectl("get", "nodes")`. Several run side by side.

    `users` are further users, each with a kubeconfig of its own (`kubeconfig_of`) and the groups named here.
    `quick_node_failure` lets a silent node fail after 10 s and its pods go 5 s later, instead of minutes.
    `audit` writes every API write to a log that `writes()` reads.
    """

    programs: Path = field(default_factory=programs_folder)
    folder: Path | None = None
    address: str = "127.0.0.1"
    kwok: bool = False
    audit: bool = False
    quick_node_failure: bool = False
    nodes: Sequence[str] = ()
    users: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ready_after_s: dict[str, float] = field(default_factory=dict, init=False)
    server: str = field(default="", init=False)
    state: Path = field(default=Path(), init=False)
    processes: Processes = field(init=False)
    _tokens: dict[str, str] = field(default_factory=dict, init=False)

    # --- what callers use ---------------------------------------------------------------------------------------
    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.kubeconfig_of("admin")

    def kubeconfig_of(self, user: str) -> Path:
        return self.state / f"{user}.kubeconfig"

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.programs / "kubectl", self.kubeconfig)

    def api(
        self, path: str, method: str = "GET", body: Any = None, content_type: str = "application/json"
    ) -> Any:
        """One request as administrator; JSON or text back.

        Raises:
            urllib.error.HTTPError: with the server's code.
        """
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._tokens['admin']}", "Content-Type": content_type},
        )
        trust = ssl.create_default_context(cafile=str(self.state / "pki/ca.crt"))
        with urllib.request.urlopen(request, context=trust, timeout=10) as answer:
            raw: bytes = answer.read()
        return json.loads(raw) if raw.startswith((b"{", b"[")) else raw.decode()

    def add_fake_nodes(
        self,
        count: int,
        *,
        gpus: int = 8,
        prefix: str = "fake",
        gpu_resource: str = "nvidia.com/gpu",
        labels: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Adds nodes that kwok runs; they are Ready within a second. Returns their names."""
        names = [f"{prefix}-{i}" for i in range(count)]
        for name in names:
            node = flags.fake_node(name, gpus, gpu_resource, labels or {})
            self.api("/api/v1/nodes", "POST", node)
        self.processes.wait_until(
            f"{count} fake nodes to be Ready", lambda: all(map(self._is_ready, names)), READY_LIMIT_S
        )
        return names

    def writes(self) -> list[AuditedWrite]:
        """Every API write so far, in order; needs `audit=True`."""
        if not self.audit:
            raise RuntimeError("this control plane keeps no audit log: start it with audit=True")
        lines = (self.state / "audit.log").read_text().splitlines()
        return [_audited(json.loads(line)) for line in lines if line.endswith("}")]

    # --- life ---------------------------------------------------------------------------------------------------
    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """
        Raises:
            FileNotFoundError: when programs are not built.
            ProcessEndedError: when a part dies while starting.
        """
        lacking = [p.name for p in missing(CONTROL_PLANE, self.programs)]
        if lacking:
            raise FileNotFoundError(
                f"not built: {', '.join(lacking)} in {self.programs}; run `python -m moefleet_cluster build`"
            )
        begin = time.monotonic()
        self.state = self.folder or Path(tempfile.mkdtemp(prefix="moefleet-control-plane-"))
        self.processes = Processes(self.state)
        try:
            self._start(begin)
        except BaseException:
            self.processes.kill_all()
            if self.folder is None:
                shutil.rmtree(self.state, ignore_errors=True)
            raise

    def kill(self) -> None:
        """Everything at once and without a grace, also when nothing has been started yet."""
        if hasattr(self, "processes"):
            self.processes.kill_all()

    def stop(self) -> None:
        for name in ("kwok", "kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd"):
            self.processes.stop(name, STOP_GRACE_S)
        self.processes.kill_all()
        if self.folder is None:
            shutil.rmtree(self.state, ignore_errors=True)

    # --- start, in order ----------------------------------------------------------------------------------------
    def _start(self, begin: float) -> None:
        pki = self.state / "pki"
        pki.mkdir(parents=True, mode=0o700)
        make_pki(pki, self.address)
        self._write_tokens(pki)
        etcd_port, peer_port, port = free_port("127.0.0.1"), free_port("127.0.0.1"), free_port(self.address)
        self.server = f"https://{self.address}:{port}"

        for user in self._tokens:
            self._write_kubeconfig(user, pki)

        def note(what: str) -> None:
            self.ready_after_s[what] = round(time.monotonic() - begin, 2)

        self._run("etcd", flags.etcd(self.state, etcd_port, peer_port))
        self.processes.wait_until("etcd", lambda: _is_healthy(etcd_port), READY_LIMIT_S)
        note("etcd")
        audit = None
        if self.audit:
            policy = self.state / "audit-policy.json"
            policy.write_text(json.dumps(flags.AUDIT_POLICY, indent=1))
            audit = (policy, self.state / "audit.log")
        self._run(
            "kube-apiserver",
            flags.apiserver(
                pki, etcd_port, self.address, port, audit=audit, quick_node_failure=self.quick_node_failure
            ),
        )
        self.processes.wait_until("the API server", lambda: self.api("/readyz") == "ok", READY_LIMIT_S)
        note("apiserver")
        manager = flags.controller_manager(
            self.kubeconfig_of("kcm"), pki, quick_node_failure=self.quick_node_failure
        )
        self._run("kube-controller-manager", manager)
        self._run("kube-scheduler", flags.scheduler(self.kubeconfig_of("scheduler")))
        if self.kwok:
            arguments = flags.kwok(
                self.kubeconfig_of("kwok"), STAGES, quick_node_failure=self.quick_node_failure
            )
            self._run("kwok", arguments)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.processes.wait_until("the account default/default", lambda: self.api(account), READY_LIMIT_S)
        note("ready")

    def _run(self, name: str, arguments: Sequence[str]) -> None:
        self.processes.start(name, str(self.programs / name), *arguments)

    def _write_tokens(self, pki: Path) -> None:
        users = dict(_USERS)
        users |= {name: (f"system:node:{name}", ["system:nodes"]) for name in self.nodes}
        users |= {name: (name, list(groups)) for name, groups in self.users.items()}
        self._tokens = {uid: secrets.token_hex(16) for uid in users}
        table = {uid: (self._tokens[uid], name, groups) for uid, (name, groups) in users.items()}
        path = pki / "tokens.csv"
        path.touch(mode=0o600)
        path.write_text(flags.tokens_csv(table))

    def _write_kubeconfig(self, user: str, pki: Path) -> None:
        path = self.kubeconfig_of(user)
        path.touch(mode=0o600)
        path.write_text(flags.kubeconfig(self.server, pki / "ca.crt", user, self._tokens[user]))

    def _is_ready(self, node: str) -> bool:
        conditions = self.api(f"/api/v1/nodes/{node}")["status"].get("conditions") or []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _is_healthy(etcd_port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{etcd_port}/health", timeout=1) as answer:
        return b"true" in answer.read()


def _audited(event: dict[str, Any]) -> AuditedWrite:
    target = event.get("objectRef") or {}
    return AuditedWrite(
        user=event["user"]["username"],
        user_agent=event.get("userAgent", ""),
        verb=event["verb"],
        resource=target.get("resource", ""),
        subresource=target.get("subresource", ""),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        code=(event.get("responseStatus") or {}).get("code", 0),
    )
