"""How long the kubelet lets a replica start, and that learning it rolls nothing."""

from typing import Any

import pytest
from moefleet_operator.api import MoEFleet
from moefleet_operator.rendering.pod import RenderedPod, render_pod
from moefleet_operator.rendering.startup import BUDGET_MAX_S, slowest_start_s, start_budget_s


@pytest.mark.parametrize(
    ("engine", "fetches", "slowest_s", "budget_s"),
    [
        ("TensorRTLLM", False, 0, 3600),
        ("TensorRTLLM", True, 0, 3600 + 4 * 3600),
        # Quick starts make nobody hasty: the next node may have nothing cached.
        ("TensorRTLLM", False, 60, 3600),
        ("TensorRTLLM", False, 3000, 9000),
        ("TensorRTLLM", True, 3000, 18000),
        ("Torch", False, 1200, 3600),
        ("Simulated", False, 3, 600),
        ("Simulated", False, 1e9, BUDGET_MAX_S),
    ],
)
def test_budget(engine: str, fetches: bool, slowest_s: float, budget_s: int) -> None:
    assert start_budget_s(engine, fetches, slowest_s) == budget_s


@pytest.mark.parametrize(
    ("status", "seconds"),
    [
        ({}, 0),
        ({"coldStart": {}}, 0),
        ({"coldStart": {"p50": "3s", "p90": "9s"}}, 0),
        ({"coldStart": {"p99": "61s"}}, 120),
        ({"coldStart": {"p99": "120s"}}, 120),
        ({"coldStart": {"p99": "1h30m"}}, 5400),
        ({"coldStart": {"p99": "soon"}}, 0),
        ({"coldStart": None}, 0),
    ],
)
def test_the_slowest_start_is_read_from_the_status_in_whole_minutes(
    status: dict[str, Any], seconds: float
) -> None:
    assert slowest_start_s(status) == seconds


def test_what_was_learnt_changes_the_probe_and_its_variable_and_not_the_revision() -> None:
    fleet = MoEFleet.model_validate(
        {
            "apiVersion": "moefleet.io/v1alpha1",
            "kind": "MoEFleet",
            "metadata": {"name": "chat", "namespace": "team", "uid": "u", "generation": 1},
            "spec": {
                "model": {"name": "m", "source": "file:///models/m", "contextLength": 4096},
                "engine": {"type": "Torch", "image": "an/image"},
                "replica": {"gpus": 0},
                "scaling": {"maxReplicas": 2},
            },
        }
    )
    before, after = (
        render_pod(fleet, gateway=True, token_sha256="", slowest_start_s=slowest) for slowest in (0.0, 6000.0)
    )
    assert isinstance(before, RenderedPod)
    assert isinstance(after, RenderedPod)
    assert before.revision == after.revision
    differing = []
    for pod, budget_s in ((before, 1200), (after, 18000)):
        container = dict(pod.body["spec"]["containers"][0])
        probe = dict(container.pop("startupProbe"))
        assert probe.pop("failureThreshold") * probe["periodSeconds"] == budget_s
        env = {v["name"]: v.get("value") for v in container.pop("env")}
        assert env.pop("MOEFLEET_START_BUDGET_S") == str(budget_s)
        differing.append((container, probe, env))
    assert differing[0] == differing[1]
    assert differing[0][1]["grpc"] == {"port": 8500, "service": "startup"}
