"""Kubernetes objects and the static file, as facts."""

import json

import pytest
from moefleet_gateway.picking.facts import Fleet, Limits, Replica
from moefleet_gateway.watching import SourceError, objects
from moefleet_gateway.watching.static import parse

POD = {
    "metadata": {
        "name": "tiny-0a1b2c3d-0",
        "namespace": "ns",
        "uid": "pu",
        "labels": {"moefleet.io/fleet": "tiny"},
        "ownerReferences": [{"kind": "MoEFleet", "uid": "fu", "controller": True}],
    },
    "spec": {"containers": [{"name": "runtime", "ports": [{"name": "grpc", "containerPort": 9500}]}]},
    "status": {
        "phase": "Running",
        "podIP": "10.0.0.9",
        "conditions": [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}],
    },
}


def pod(**changes: object) -> dict[str, object]:
    out = json.loads(json.dumps(POD))
    for path, value in changes.items():
        target = out
        *parents, last = path.split("__")
        for part in parents:
            target = target[part]
        target[last] = value
    return out


def test_a_pod_is_a_replica_whether_or_not_it_is_ready_by_its_gate() -> None:
    assert objects.replica(POD) == Replica(
        "pu", "tiny-0a1b2c3d-0", "ns/tiny", "fu", "10.0.0.9:9500", "10.0.0.9:8501", ready=True, draining=False
    )


@pytest.mark.parametrize(
    ("changes", "ready", "draining"),
    [
        ({"status__conditions": []}, False, False),
        ({"status__conditions": [{"type": "ContainersReady", "status": "False"}]}, False, False),
        ({"metadata__deletionTimestamp": "2026-01-01T00:00:00Z"}, True, True),
        (
            {
                "status__conditions": [
                    {"type": "ContainersReady", "status": "True"},
                    {"type": "moefleet.io/Draining", "status": "True", "reason": "ScaleDown"},
                ]
            },
            True,
            True,
        ),
        (
            {
                "status__conditions": [
                    {"type": "ContainersReady", "status": "True"},
                    {"type": "moefleet.io/Draining", "status": "False"},
                ]
            },
            True,
            False,
        ),
    ],
)
def test_ready_and_draining(changes: dict[str, object], ready: bool, draining: bool) -> None:
    replica = objects.replica(pod(**changes))
    assert replica is not None
    assert (replica.ready, replica.draining) == (ready, draining)


@pytest.mark.parametrize(
    "changes",
    [
        {"status__podIP": ""},
        {"status__phase": "Failed"},
        {"status__phase": "Succeeded"},
        {"metadata__labels": {}},
        {"status": {}},
    ],
)
def test_pods_that_are_no_replica_yet_or_any_more(changes: dict[str, object]) -> None:
    assert objects.replica(pod(**changes)) is None


def test_an_orphan_belongs_to_no_fleet() -> None:
    replica = objects.replica(pod(metadata__ownerReferences=[]))
    assert replica is not None
    assert replica.fleet_uid not in ("", "fu")


def test_ipv6() -> None:
    replica = objects.replica(pod(status__podIP="fd00::9"))
    assert replica is not None
    assert replica.address == "[fd00::9]:9500"


def test_a_fleet_with_everything_and_one_with_nothing_but_its_model() -> None:
    full = {
        "metadata": {"name": "f", "namespace": "ns", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "model": {"name": "m", "contextLength": 4096},
            "engine": {"type": "Torch"},
            "limits": {"streamDuration": "1h30m", "queuedRequests": 7, "hold": "500ms"},
        },
    }
    limits = Limits(queued_requests=7, hold_s=0.5, stream_duration_s=5400)
    assert objects.fleet(full) == Fleet("ns", "f", "u", "2026-01-01T00:00:00Z", "m", "Torch", 4096, limits)
    bare = {"metadata": {"name": "f"}, "spec": {"model": {"name": "m"}}}
    assert objects.fleet(bare) == Fleet("default", "f", "", "", "m")
    assert objects.fleet({"metadata": {"name": "f"}, "spec": {}}) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15m", 900),
        ("2s", 2),
        ("100ms", 0.1),
        ("0s", 0),
        ("1h1m1s", 3661),
        ("1.5h", 5400),
        ("", 9),
        ("soon", 9),
        (5, 9),
        (None, 9),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert objects.duration_s(text, 9) == pytest.approx(seconds)


def test_static_file() -> None:
    fleets, replicas = parse(
        b'{"fleets": [{"namespace": "n", "name": "f", "model": "m", "uid": "u", "limits": {"hold": "1s"}}],'
        b' "replicas": [{"uid": "r", "fleet": "n/f", "address": "127.0.0.1:1", "ready": false}]}',
        "world.json",
    )
    assert fleets == [Fleet("n", "f", "u", "", "m", limits=Limits(hold_s=1.0))]
    assert replicas == {"r": Replica("r", "r", "n/f", "u", "127.0.0.1:1", "", ready=False, draining=False)}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"fleets": [{}]}', b'{"replicas": [{"uid": "x"}]}'])
def test_a_static_file_that_is_none_is_named(content: bytes) -> None:
    with pytest.raises(SourceError, match=r"world\.json"):
        parse(content, "world.json")
