"""What one Envoy is sent, and what its acknowledgements mean."""

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from moefleet_gateway.ads import CDS, EDS, Session, assignment, cluster

NO_NAMES: frozenset[str] = frozenset()


def ack(session: Session, response, names=NO_NAMES, error: str = "") -> None:
    session.request(response.type_url, frozenset(names), response.nonce, error)


def connected(view: dict[str, tuple[str, ...]], version: int = 1) -> Session:
    session = Session()
    session.request(CDS, NO_NAMES, "", "")
    [cds] = session.poll(version, view)
    session.request(EDS, frozenset(view), "", "")
    ack(session, cds)
    for response in session.poll(version, view):
        ack(session, response, view)
    return session


def test_clusters_first_then_the_endpoints_that_envoy_asks_for() -> None:
    session = Session()
    view = {"ns/a": ("1.1.1.1:1",), "ns/b": ()}
    assert session.poll(1, view) == []  # nothing before it asks
    session.request(CDS, NO_NAMES, "", "")
    [cds] = session.poll(1, view)
    assert (cds.type_url, cds.names) == (CDS, ("ns/a", "ns/b"))
    ack(session, cds)
    assert session.poll(1, view) == []
    assert session.acknowledged == 0
    session.request(EDS, frozenset(view), "", "")
    [eds] = session.poll(1, view)
    assert (eds.type_url, eds.names) == (EDS, ("ns/a", "ns/b"))  # a fleet without replicas has an answer too
    assert session.acknowledged == 0
    ack(session, eds, view)
    assert session.acknowledged == 1
    assert session.poll(1, view) == []


def test_only_what_changed_is_sent_and_one_at_a_time() -> None:
    view = {"ns/a": ("1.1.1.1:1",), "ns/b": ()}
    session = connected(view)
    [first] = session.poll(2, {**view, "ns/a": ("2.2.2.2:1",)})
    assert first.names == ("ns/a",)
    # Another change while the answer is out waits for it.
    assert session.poll(3, {"ns/a": ("3.3.3.3:1",), "ns/b": ("4.4.4.4:1",)}) == []
    ack(session, first, view)
    assert session.acknowledged == 2
    [second] = session.poll(3, {"ns/a": ("3.3.3.3:1",), "ns/b": ("4.4.4.4:1",)})
    assert second.names == ("ns/a", "ns/b")
    ack(session, second, view)
    assert session.acknowledged == 3


def test_a_new_fleet_is_acknowledged_only_with_its_endpoints() -> None:
    session = connected({"ns/a": ()})
    view = {"ns/a": (), "ns/b": ("1.1.1.1:1",)}
    [cds] = session.poll(2, view)
    ack(session, cds)
    session.poll(2, view)
    assert session.acknowledged == 1
    session.request(EDS, frozenset(view), "1", "")
    [eds] = session.poll(2, view)
    assert eds.names == ("ns/b",)
    ack(session, eds, view)
    assert session.acknowledged == 2


def test_a_fleet_that_goes_and_comes_back_is_sent_again() -> None:
    view = {"ns/a": ("1.1.1.1:1",)}
    session = connected(view)
    [cds] = session.poll(2, {})
    ack(session, cds)
    session.request(EDS, NO_NAMES, "x", "")
    session.poll(2, {})
    assert session.acknowledged == 2
    [cds] = session.poll(3, view)
    ack(session, cds)
    session.request(EDS, frozenset(view), "x", "")
    assert [r.names for r in session.poll(3, view)] == [("ns/a",)]


def test_no_fleets_at_all_is_a_state_that_can_be_acknowledged() -> None:
    session = Session()
    session.request(CDS, NO_NAMES, "", "")
    [cds] = session.poll(1, {})
    assert session.acknowledged == 0
    ack(session, cds)
    session.poll(1, {})
    assert session.acknowledged == 1


def test_a_rejection_acknowledges_nothing_and_is_not_repeated_until_something_changes() -> None:
    view = {"ns/a": ()}
    session = connected(view)
    bad = {"ns/a": ("bad:1",)}
    [eds] = session.poll(2, bad)
    ack(session, eds, view, error="malformed IP address")
    assert session.poll(2, bad) == []
    assert (session.acknowledged, session.rejected) == (1, 1)
    [again] = session.poll(3, {"ns/a": ("1.1.1.1:1",)})
    ack(session, again, view)
    assert session.acknowledged == 3


def test_a_stale_nonce_acknowledges_nothing() -> None:
    view = {"ns/a": ("1.1.1.1:1",)}
    session = connected(view)
    session.poll(2, {"ns/a": ()})
    session.request(EDS, frozenset(view), "old", "")
    assert session.acknowledged == 1


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["n/a", "n/b", "n/c"]), st.sets(st.sampled_from(["1:1", "2:1"])), max_size=3
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_changes_envoy_ends_with_what_is_wanted_when_it_has_acknowledged(
    steps: list[dict[str, set[str]]],
) -> None:
    """A model Envoy that applies what it is sent and asks for the endpoints of its clusters."""
    session = Session()
    session.request(CDS, NO_NAMES, "", "")
    clusters: tuple[str, ...] = ()
    has: dict[str, tuple[str, ...]] = {}
    for version, raw in enumerate(steps, start=1):
        view = {name: tuple(sorted(addresses)) for name, addresses in raw.items()}
        for _ in range(6):
            for response in session.poll(version, view):
                if response.type_url == CDS:
                    clusters = response.names
                    has = {n: has[n] for n in clusters if n in has}
                    ack(session, response)
                    if clusters or EDS in session.subscribed:
                        session.request(EDS, frozenset(clusters), "", "")
                else:
                    has.update({n: view[n] for n in response.names})
                    ack(session, response, clusters)
        assert session.acknowledged == version
        assert has == view


def test_cluster_and_endpoints_as_envoy_reads_them() -> None:
    assert json_format.MessageToDict(assignment("ns/a", ("10.0.0.1:8500", "[fd00::1]:8500"))) == {
        "clusterName": "ns/a",
        "endpoints": [
            {
                "lbEndpoints": [
                    {"endpoint": {"address": {"socketAddress": {"address": "10.0.0.1", "portValue": 8500}}}},
                    {"endpoint": {"address": {"socketAddress": {"address": "fd00::1", "portValue": 8500}}}},
                ]
            }
        ],
    }
    made = json_format.MessageToDict(cluster("ns/a", 20.0))
    assert made["edsClusterConfig"]["edsConfig"]["initialFetchTimeout"] == "0s"
    [policy] = made["loadBalancingPolicy"]["policies"]
    assert policy["typedExtensionConfig"]["typedConfig"]["overrideHostSources"] == [
        {"header": "x-gateway-destination-endpoint"}
    ]
    assert made["circuitBreakers"]["thresholds"][0]["maxRequests"] == 100_000
    (options,) = made["typedExtensionProtocolOptions"].values()
    pings = options["explicitHttpConfig"]["http2ProtocolOptions"]["connectionKeepalive"]
    assert (pings["interval"], pings["timeout"]) == ("5s", "14.250s")


@pytest.mark.parametrize("address", ["10.0.0.1", "host:port", ""])
def test_an_address_that_is_none_names_its_cluster(address: str) -> None:
    with pytest.raises(ValueError, match="endpoint of ns/a"):
        assignment("ns/a", (address,))
