"""The scenario files: all are read, nothing of the issue's list is missing, and a wrong one is refused with its field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from moefleet_faults.__main__ import choose
from moefleet_faults.run import manifest
from moefleet_faults.scenario import FOLDER, Scenario, read, read_all

EVERY = read_all()
# What issue 7 names under "Breaking the real thing".
WANTED = {
    "operator leader": "operator-leader-killed",
    "gateway, Envoy": "envoy-killed",
    "gateway, picker": "picker-killed",
    "engine": "engine-host-killed",
    "replica": "replica-killed",
    "replica with real tokens": "replica-killed-torch",
    "kubelet": "kubelet-killed",
    "containerd": "containerd-killed",
    "node freeze": "node-frozen",
    "cut between gateway and replica": "gateway-cut-from-replica",
    "cut between operator and API server": "operators-cut-from-api-server",
    "API server restart": "api-server-restarted",
    "500 spec edits in a minute": "five-hundred-edits",
    "rollout with no spare GPU": "rollout-without-a-spare-gpu",
    "helm upgrade and rollback": "helm-upgrade-and-rollback",
    "uninstall order reversed": "uninstalled-first",
    "30 minutes of scale-downs, rollouts and drains": "long-run",
}


def test_each_fault_of_the_issue_has_its_file() -> None:
    assert set(WANTED.values()) <= {s.name for s in EVERY}


@pytest.mark.parametrize("scenario", EVERY, ids=lambda s: s.name)
def test_each_fits_its_cluster(scenario: Scenario) -> None:
    spec = manifest(scenario, "space")["spec"]
    gpus = spec["replica"]["gpus"] * (scenario.fleet.replicas + 1)
    assert gpus <= scenario.cluster.gpus * scenario.cluster.nodes, "no room for a rollout's new replica"
    assert spec["scaling"]["mode"] == "External"


def test_the_promises_are_not_softened_in_silence() -> None:
    """Who may see something, and how often, is named here too: a change of a file's promise changes this table."""
    soft = {
        s.name: (s.hold.touched, s.hold.new_may_fail)
        for s in EVERY
        if s.hold.touched != "nobody" or s.hold.new_may_fail
    }
    assert soft == {
        "engine-host-killed": ("replica", 0),
        "engine-host-killed-three-times": ("replica", 0),
        "envoy-killed": ("gateway", 60),
        "gateway-cut-from-replica": ("replica", 6),
        "node-frozen": ("replica", 6),
        "node-frozen-for-a-minute": ("replica", 6),
        "picker-killed": ("nobody", 20),
        "replica-killed": ("replica", 0),
        "replica-killed-torch": ("replica", 0),
    }
    assert {s.hold.ours_resumed_percent for s in EVERY} == {95}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": [{"do": "kill", "what": "the cat"}]}, "steps.0.kill.what"),
        ({"steps": []}, "steps"),
        ({"hold": {"touched": "replica"}}, "hold.plain_statuses"),
        ({"lode": {}}, "lode"),
        ({"name": "another"}, "file and name must agree"),
        ({"load": {"ours_per_s": 0}}, "load.ours_per_s"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "kubelet-killed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / path.name).read_text()) | change))
    with pytest.raises(ValueError, match=says):
        read(path)


def test_choosing() -> None:
    names = lambda **chosen: [s.name for s in choose(EVERY, **chosen)]  # noqa: E731
    assert names(only=["kubelet-killed"]) == ["kubelet-killed"]
    assert "long-run" not in names(only=None)
    assert "long-run" in names(only=None, minutes=3)
    assert 0 < len(names(only=None, short=True)) < 5
    (one,) = choose(EVERY, ["long-run"], minutes=3)
    assert one.repeat_minutes == 3
    with pytest.raises(ValueError, match="there are"):
        choose(EVERY, ["nothing"])
