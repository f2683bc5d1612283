"""Which fleet a name means."""

import pytest
from moefleet_gateway.picking.facts import Fleet
from moefleet_gateway.picking.models import ModelTable, fleet_of_authority
from moefleet_gateway.picking.refusals import unknown_model


def fleet(name: str, model: str, created: str = "2026-01-01T00:00:00Z", namespace: str = "ns") -> Fleet:
    return Fleet(namespace, name, f"uid-{namespace}-{name}", created, model)


OLD = fleet("old", "chat", "2026-01-01T00:00:00Z", "a")
YOUNG = fleet("young", "chat", "2026-02-01T00:00:00Z", "b")
OTHER = fleet("other", "code", "2026-03-01T00:00:00Z", "a")
TWIN = fleet("twin", "chat", "2026-04-01T00:00:00Z", "a")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("chat", OLD),
        ("a/chat", OLD),
        ("b/chat", YOUNG),
        ("code", OTHER),
        ("a/code", OTHER),
        ("b/code", None),
        ("", None),
        ("CHAT", None),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_the_oldest_fleet_has_the_name_in_whatever_order_they_come(
    asked: str, found: Fleet | None, reverse: bool
) -> None:
    fleets = [OLD, YOUNG, OTHER, TWIN]
    assert ModelTable(reversed(fleets) if reverse else fleets).find(asked) is found


def test_a_name_is_free_again_when_its_fleet_is_gone() -> None:
    assert ModelTable([YOUNG, TWIN]).find("chat") is YOUNG


def test_a_literal_name_with_a_slash_wins_over_a_younger_qualified_one() -> None:
    literal = fleet("x", "b/chat", "2025-01-01T00:00:00Z")
    assert ModelTable([literal, YOUNG]).find("b/chat") is literal


def test_listed_names_every_reachable_fleet_once() -> None:
    listed = ModelTable([OLD, YOUNG, OTHER, TWIN]).listed()
    assert [(name, f.name) for name, f in listed] == [("b/chat", "young"), ("chat", "old"), ("code", "other")]


def test_the_list_in_a_message_is_bounded() -> None:
    table = ModelTable([fleet(f"f{n}", f"m{n:03}") for n in range(500)])
    message = unknown_model("x" * 1000, table.names()).message
    assert "m000, m001" in message
    assert message.endswith("and 480 more")
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("authority", "key"),
    [
        ("tiny.default", "default/tiny"),
        ("tiny.default:8080", "default/tiny"),
        ("tiny.default.svc.cluster.local:80", "default/tiny"),
        ("gateway", ""),
        ("gateway:8080", ""),
        ("", ""),
        (".default", ""),
        ("tiny.", ""),
        ("[::1]:8080", ""),
        ("127.0.0.1:8080", "0/127"),  # no such fleet: a name starts with a letter
    ],
)
def test_authority(authority: str, key: str) -> None:
    assert fleet_of_authority(authority) == key
