"""Registrations: everything first, then changes; a broken stream is unknown, not unregistered."""

from moefleet.gateway.v1 import gateway_pb2 as pb
from moefleet_operator.core.events import EndpointView, GatewayView
from moefleet_operator.telemetry.endpoints import EndpointBook

REGISTERED, WITHDRAWN = pb.ENDPOINT_STATE_REGISTERED, pb.ENDPOINT_STATE_WITHDRAWN


def said(version, *endpoints, full=False, gone=(), incarnation="a", gateway="g1"):
    return pb.WatchEndpointsResponse(
        gateway_uid=gateway,
        incarnation=incarnation,
        version=version,
        full=full,
        endpoints=[pb.Endpoint(pod_uid=u, state=s, in_flight=n) for u, s, n in endpoints],
        gone_pod_uids=gone,
    )


def book():
    made = EndpointBook()
    made.expect(["g1"])
    return made


def test_changes_are_put_on_top_of_everything():
    made = book()
    assert made.view("g1") is None
    assert made.put("g1", said(1, ("a", REGISTERED, 2), ("b", REGISTERED, 0), full=True))
    assert made.put("g1", said(2, ("a", WITHDRAWN, 1), gone=["b"]))
    assert made.view("g1") == GatewayView("a", 2, {"a": EndpointView(False, 1)})


def test_a_full_message_forgets_what_is_not_in_it():
    made = book()
    made.put("g1", said(1, ("a", REGISTERED, 0), full=True))
    made.put("g1", said(2, ("b", REGISTERED, 0), full=True))
    assert set(made.view("g1").endpoints) == {"b"}


def test_a_broken_stream_is_unknown_until_everything_came_again():
    made = book()
    made.put("g1", said(1, ("a", REGISTERED, 0), full=True))
    made.lost("g1")
    assert made.view("g1") is None
    assert not made.put("g1", said(2, ("b", REGISTERED, 0)))
    assert made.view("g1") is None
    made.put("g1", said(3, full=True))
    assert made.view("g1") == GatewayView("a", 3, {})


def test_changes_of_another_incarnation_and_of_strangers_are_not_taken():
    made = book()
    made.put("g1", said(1, ("a", REGISTERED, 0), full=True))
    assert not made.put("g1", said(2, ("b", REGISTERED, 0), incarnation="b"))
    assert not made.put("g1", said(2, full=True, gateway="g2"))
    assert not made.put("g2", said(2, full=True, gateway="g2"))
    assert set(made.view("g1").endpoints) == {"a"}


def test_a_view_that_was_handed_out_does_not_change():
    made = book()
    made.put("g1", said(1, ("a", REGISTERED, 0), full=True))
    before = made.view("g1")
    made.put("g1", said(2, ("a", WITHDRAWN, 0)))
    assert before.endpoints["a"].registered
    made.expect([])
    assert made.views() == {}
