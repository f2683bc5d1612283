"""The life of an endpoint, step by step."""

from dataclasses import replace

import pytest
from moefleet_gateway.picking.endpoints import COUNT_PATIENCE_S, TRANSIT_S, Endpoints, why_not
from moefleet_gateway.picking.facts import Load, Replica

A = Replica("a", "pod-a", "ns/f", "fu", "10.0.0.1:8500", "10.0.0.1:8501", ready=True, draining=False)
SERVING = Load("a", True, "Serving", 0.0)


@pytest.mark.parametrize(
    ("replica", "load", "reason"),
    [
        (A, SERVING, ""),
        (replace(A, ready=False), SERVING, "ContainersNotReady"),
        (replace(A, draining=True), SERVING, "Draining"),
        (A, None, "NoLoadStream"),
        (A, replace(SERVING, pod_uid="b"), "WrongPod"),
        (A, replace(SERVING, serving=False, state="Warming"), "StateWarming"),
        (replace(A, control=""), None, ""),
    ],
)
def test_who_may_be_registered(replica: Replica, load: Load | None, reason: str) -> None:
    assert why_not(replica, load) == reason


def registered(now: float = 0.0) -> Endpoints:
    endpoints = Endpoints()
    endpoints.observe(A, SERVING, 0, now)
    endpoints.acknowledge(endpoints.version)
    return endpoints


def chosen(endpoints: Endpoints) -> list[str]:
    return [c.uid for c in endpoints.choosable("ns/f")]


def test_envoy_knows_it_before_it_may_be_chosen() -> None:
    endpoints = Endpoints()
    endpoints.acknowledge(endpoints.version)
    assert endpoints.observe(A, SERVING, 0, 0.0) == "offered"
    assert chosen(endpoints) == []
    assert endpoints.clusters([]) == {"ns/f": ("10.0.0.1:8500",)}
    endpoints.acknowledge(endpoints.version - 1)  # an older version does not have it
    assert chosen(endpoints) == []
    assert [e.replica.uid for e in endpoints.acknowledge(endpoints.version)] == ["a"]
    assert chosen(endpoints) == ["a"]


def test_a_new_sample_of_a_registered_one_changes_nothing() -> None:
    endpoints = registered()
    version = endpoints.version
    assert endpoints.observe(A, replace(SERVING, received_s=5.0), 0, 5.0) is None
    assert endpoints.version == version


def test_withdrawn_at_once_and_forgotten_only_after_envoy_counts_nothing() -> None:
    endpoints = registered()
    endpoints.by_uid["a"].tracked = 1
    assert endpoints.observe(replace(A, draining=True), SERVING, 0, 10.0) == "withdrawn"
    assert chosen(endpoints) == []
    assert endpoints.clusters([]) == {"ns/f": ("10.0.0.1:8500",)}
    # A count from before the last pick could have arrived says nothing yet.
    endpoints.counted({}, 10.0 + TRANSIT_S / 2)
    assert endpoints.sweep(10.0 + TRANSIT_S / 2) == []
    endpoints.counted({("ns/f", "10.0.0.1:8500"): 2}, 10.0 + TRANSIT_S)
    assert endpoints.by_uid["a"].in_flight() == 2
    assert endpoints.sweep(100.0) == []
    # Envoy's word counts, also against our own (the request was retried elsewhere).
    endpoints.counted({}, 12.0)
    assert endpoints.sweep(12.0) == ["a"]
    assert endpoints.clusters([]) == {}


def test_without_envoys_count_our_own_has_to_do() -> None:
    endpoints = registered()
    endpoints.by_uid["a"].tracked = 1
    endpoints.withdraw("a", "Draining", 10.0)
    assert endpoints.sweep(10.0 + COUNT_PATIENCE_S) == []
    endpoints.by_uid["a"].tracked = 0
    assert endpoints.sweep(10.0 + COUNT_PATIENCE_S - 0.1) == []
    assert endpoints.sweep(10.0 + COUNT_PATIENCE_S) == ["a"]


def test_resume_before_it_is_forgotten_needs_no_acknowledgement() -> None:
    endpoints = registered()
    version = endpoints.version
    endpoints.observe(replace(A, draining=True), SERVING, 0, 1.0)
    assert endpoints.observe(A, SERVING, 0, 2.0) == "registered"
    assert chosen(endpoints) == ["a"]
    assert endpoints.version == version


def test_an_offer_that_was_never_taken_is_withdrawn_without_a_trace() -> None:
    endpoints = Endpoints()
    endpoints.acknowledge(1)
    endpoints.observe(A, SERVING, 0, 0.0)
    assert endpoints.withdraw("a", "Deleted", 1.0) == "gone"
    assert endpoints.by_uid == {}


def test_a_lost_envoy_must_acknowledge_anew() -> None:
    endpoints = registered()
    endpoints.envoy_lost()
    assert chosen(endpoints) == []
    assert endpoints.observe(replace(A, draining=True), SERVING, 0, 1.0) == "withdrawn"
    assert endpoints.observe(A, SERVING, 0, 2.0) == "offered"  # resumed, but this Envoy has not confirmed it
    endpoints.acknowledge(endpoints.version)
    assert chosen(endpoints) == ["a"]


def test_two_pods_at_one_address_are_one_endpoint_to_envoy() -> None:
    endpoints = registered()
    heir = replace(A, uid="b", name="pod-b")
    endpoints.observe(heir, replace(SERVING, pod_uid="b"), 0, 1.0)
    assert endpoints.clusters([]) == {"ns/f": ("10.0.0.1:8500",)}
    endpoints.withdraw("a", "Deleted", 1.0)
    endpoints.acknowledge(endpoints.version)
    assert chosen(endpoints) == ["b"]


def test_streams_that_an_earlier_picker_left_keep_the_endpoint_known() -> None:
    endpoints = Endpoints()
    assert endpoints.observe(replace(A, draining=True), SERVING, 3, 0.0) == "withdrawn"
    assert endpoints.clusters([]) == {"ns/f": ("10.0.0.1:8500",)}
    assert endpoints.by_uid["a"].in_flight() == 3
    assert endpoints.observe(replace(A, uid="b", draining=True), SERVING, 0, 0.0) is None


def test_a_cluster_outlives_its_fleet_while_something_runs_in_it() -> None:
    endpoints = registered()
    assert endpoints.clusters(["ns/g"]) == {"ns/g": (), "ns/f": ("10.0.0.1:8500",)}
