"""What `moefleet top` shows of a fleet, in every state that a fleet can be in."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from moefleet_cli.app import run
from moefleet_cli.exits import Exit
from moefleet_cli.fleets import row, rows
from moefleet_cli.tables import top_table
from rich.console import Console


def fleet(name: str = "f", namespace: str = "n", **status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"name": "m", "source": "file:///m"},
            "engine": {"image": "i"},
            "pricing": {"currency": "CNY", "gpuHourCost": "14"},
        },
        "status": status,
    }


def ready(
    status: str = "True", reason: str = "AllReplicasReady", message: str = "all good"
) -> dict[str, Any]:
    return {
        "type": "Ready",
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


BUSY: dict[str, Any] = {
    "readyReplicas": 2,
    "desiredReplicas": 3,
    "conditions": [ready()],
    "throughput": {"inputTokensPerSecond": 101234, "outputTokensPerSecond": 51234, "utilizationPercent": 61},
    "objective": {"ttftP99": "1.2s", "attainmentPercent": "99.1"},
    "economics": {"costPerMillionTokens": "0.62", "marginPercent": "51"},
    "scaling": {
        "lastDecision": {"time": "2026-01-01T00:00:00Z", "from": 2, "to": 3, "reason": "DemandRose", "message": "needs 2.4 replicas"}
    },
}  # fmt: skip


def text(*bodies: dict[str, Any], namespaces: bool = True) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200)
    console.print(top_table(rows(bodies), namespaces=namespaces))
    output = console.file
    assert isinstance(output, io.StringIO)
    return [line.split() for line in output.getvalue().splitlines()]


def test_a_busy_fleet_shows_numbers_and_why_it_has_its_size() -> None:
    head, line = text(fleet(**BUSY))
    assert " ".join(head) == (
        "NAMESPACE FLEET READY REPLICAS IN TOK/S OUT TOK/S UTIL TTFT P99 COST/M DECISION REASON"
    )
    assert " ".join(line) == (
        "n f True 2/3 101,234 51,234 61% 1.2s 0.62 CNY 2 -> 3 DemandRose needs 2.4 replicas"
    )


def test_what_is_not_measured_is_no_zero() -> None:
    _, line = text(fleet(conditions=[ready()]), namespaces=False)
    assert line == ["f", "True", "0/0", "-", "-", "-", "-", "-", "-", "AllReplicasReady"]


def test_a_fleet_that_nobody_looked_at_yet() -> None:
    found = row(fleet())
    assert (found.ready, found.reason) == ("Unknown", "NotReconciledYet")


def test_a_fleet_that_is_not_ready_comes_first_and_says_why() -> None:
    broken = fleet("z", conditions=[ready("False", "ImagePullFailed", "no such image")])
    found = rows([fleet("a", **BUSY), broken])
    assert [r.fleet for r in found] == ["z", "a"]
    assert "ImagePullFailed: no such image" in " ".join(text(broken)[1])


def test_a_fleet_of_a_newer_api_is_a_row_and_no_crash() -> None:
    body = fleet()
    body["spec"]["engine"]["type"] = "Quantum"
    found = row(body)
    assert (found.fleet, found.ready, found.reason) == ("f", "Unknown", "Unreadable")
    assert "engine.type" in found.message


# --- against a server that speaks as the API server does ---------------------------------------------------------


class _Api(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, dict[str, Any]]] = {}  # noqa: RUF012 - set by the fixture

    def do_GET(self) -> None:
        code, body = self.answers.get(self.path.partition("?")[0], (404, {"kind": "Status", "code": 404}))
        raw = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


GROUP = "/apis/moefleet.io/v1alpha1"


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Iterator[Path]:
    _Api.answers = {
        f"{GROUP}/moefleets": (200, {"items": [fleet("f", "team", **BUSY), fleet("g", "other")]}),
        f"{GROUP}/namespaces/team/moefleets": (200, {"items": [fleet("f", "team", **BUSY)]}),
        f"{GROUP}/namespaces/empty/moefleets": (200, {"items": []}),
        f"{GROUP}/namespaces/closed/moefleets": (403, {"kind": "Status", "code": 403}),
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = tmp_path / "kubeconfig"
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [
                    {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}
                ],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
            }
        )
    )
    yield path
    server.shutdown()
    server.server_close()


def test_json_of_the_contexts_namespace(kubeconfig: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["top", "--kubeconfig", str(kubeconfig), "-o", "json"]) == Exit.OK
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["namespace"], found["fleet"], found["output_tokens_per_second"]) == ("team", "f", 51234)


def test_output_that_is_no_terminal_is_printed_once(
    kubeconfig: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["top", "--kubeconfig", str(kubeconfig), "-A"]) == Exit.OK
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["NAMESPACE", "FLEET"], ["other", "g"], ["team", "f"]]


@pytest.mark.parametrize(
    ("namespace", "code", "words"),
    [
        ("empty", Exit.OK, "no fleets in namespace empty"),
        ("closed", Exit.CLUSTER, "you may not list moefleets.moefleet.io in namespace closed"),
        ("missing", Exit.CLUSTER, "this cluster has no moefleets.moefleet.io: is the chart installed?"),
    ],
)
def test_what_is_not_there(
    kubeconfig: Path, capsys: pytest.CaptureFixture[str], namespace: str, code: Exit, words: str
) -> None:
    assert run(["top", "--kubeconfig", str(kubeconfig), "-n", namespace]) == code
    assert words in capsys.readouterr().err


def test_no_cluster_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert run(["top", "--kubeconfig", str(tmp_path / "absent")]) == Exit.CLUSTER
    assert "no cluster to ask" in capsys.readouterr().err
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "absent")
    )
    assert run(["top"]) == Exit.CLUSTER
    assert "this is no pod of a cluster" in capsys.readouterr().err
