"""Names that parts agree on by spelling alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_operator import names

FLEETS = st.from_regex(r"\A[a-z]([-a-z0-9]{0,38}[a-z0-9])?\Z")
REVISIONS = st.text("0123456789abcdef", min_size=8, max_size=8)


@given(FLEETS, REVISIONS, st.integers(0, names.SLOT_MAX))
def test_a_pod_name_reads_back_and_fits_a_host_name(fleet: str, revision: str, slot: int) -> None:
    text = names.pod_name(fleet, revision, slot)
    assert len(text) <= 63
    assert names.parse_pod_name(text) == names.ReplicaName(fleet, revision, slot)


def test_a_fleet_that_looks_like_a_pod_keeps_its_name() -> None:
    assert names.parse_pod_name("a-01234567-1-89abcdef-2") == names.ReplicaName("a-01234567-1", "89abcdef", 2)


@pytest.mark.parametrize(
    "text", ["", "a", "a-0123456-0", "a-0123456g-0", "a-01234567-00", "a-01234567-", "A-01234567-0"]
)
def test_other_names_are_no_replicas(text: str) -> None:
    assert names.parse_pod_name(text) is None


@pytest.mark.parametrize(
    ("revision", "slot"), [("0123456", 0), ("0123456G", 0), ("01234567", -1), ("01234567", 1_000_000)]
)
def test_a_wrong_pod_name_is_never_made(revision: str, slot: int) -> None:
    with pytest.raises(ValueError, match="fleet f: wanted"):
        names.pod_name("f", revision, slot)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("a", True),
        ("a-b", True),
        ("f" * 40, True),
        ("f" * 41, False),
        ("", False),
        ("7b", False),
        ("a.b", False),
        ("a-", False),
        ("A", False),
    ],
)
def test_fleet_names(name: str, right: bool) -> None:
    assert names.is_fleet_name(name) is right


def test_labels_are_those_of_the_contract() -> None:
    assert names.replica_labels("f", "01234567", 2) == {
        "app.kubernetes.io/name": "moefleet-replica",
        "app.kubernetes.io/managed-by": "moefleet-operator",
        "moefleet.io/fleet": "f",
        "moefleet.io/revision": "01234567",
        "moefleet.io/slot": "2",
        "moefleet.io/active": "true",
    }
    assert names.replica_labels("f", "01234567", 2, active=False)["moefleet.io/active"] == "false"
    assert names.active_selector("f") == "moefleet.io/fleet=f,moefleet.io/active=true"
    assert names.gateway_selector() == "app.kubernetes.io/name=moefleet,app.kubernetes.io/component=gateway"


@pytest.mark.parametrize(
    ("text", "parsed"), [("a/b", ("a", "b")), ("a", None), ("/b", None), ("a/", None), ("a/b/c", None)]
)
def test_qualified_names(text: str, parsed: tuple[str, str] | None) -> None:
    assert names.parse_qualified(text) == parsed
    if parsed:
        assert names.qualified(*parsed) == text
