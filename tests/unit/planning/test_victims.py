"""Who goes first: a table. The cost is what the module says it is, in answer tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
from moefleet_operator.planning.observed import Replica
from moefleet_operator.planning.reported import ReplicaLoad
from moefleet_operator.planning.victims import PREFILL_COST, cost_tokens, victims
from moefleet_testing.builders import NEW, OLD, pending, ready, starting


def loaded(
    slot: int, *, outstanding: int = 0, reusable: int = 0, share: float = 0.0, revision: str = NEW
) -> Replica:
    load = ReplicaLoad("SERVING", outstanding_tokens=outstanding, reusable_tokens=reusable, hit_share=share)
    return replace(ready(slot, revision), load=load)


FAILING = replace(starting(7, started=True), load=ReplicaLoad("FAILED", message="the engine died"))
UNKNOWN = replace(ready(8), load=None)


@pytest.mark.parametrize(
    ("story", "replicas", "first"),
    [
        ("never started before failing", [FAILING, starting(1), loaded(0)], 1),
        ("of those that never started the one without a node", [starting(1), pending(2), pending(3, unschedulable_for_s=5)], 3),
        ("failing before any that serves", [loaded(0), FAILING, loaded(1, revision=OLD)], 7),
        ("old before new, whatever it carries", [loaded(0), loaded(1, outstanding=9000, revision=OLD)], 1),
        ("fewest outstanding tokens", [loaded(0, outstanding=900), loaded(1, outstanding=100), loaded(2, outstanding=500)], 1),
        ("the coldest cache", [loaded(0, reusable=80_000, share=0.7), loaded(1, reusable=80_000, share=0.1)], 1),
        ("a full cache that nobody hits is cold", [loaded(0, reusable=90_000), loaded(1, reusable=1_000, share=0.9)], 0),
        ("a warm idle one is worth more than a cold one with one short answer left", [loaded(0, reusable=50_000, share=0.8), loaded(1, outstanding=300)], 1),
        ("a barely warm idle one is worth less than a long answer", [loaded(0, reusable=1_000, share=0.2), loaded(1, outstanding=4_000)], 0),
        ("of whom nothing is known last", [UNKNOWN, loaded(0, outstanding=90_000, reusable=90_000, share=1.0)], 0),
        ("equals: the highest slot", [loaded(0), loaded(2), loaded(1)], 2),
    ],
)  # fmt: skip
def test_the_first_to_go(story: str, replicas: list[Replica], first: int) -> None:
    for order in (replicas, replicas[::-1]):
        assert victims(order, (NEW,))[0].pod.slot == first, story


def test_revisions_go_by_how_much_they_are_wanted() -> None:
    tried, good, new = loaded(0, revision="cccccccc"), loaded(1, revision=OLD), loaded(2, outstanding=5)
    assert [r.pod.slot for r in victims([new, good, tried], (NEW, OLD))] == [0, 1, 2]
    assert [r.pod.slot for r in victims([new, good, tried], (OLD,))] == [0, 2, 1]


def test_the_formula() -> None:
    replica = loaded(0, outstanding=120, reusable=10_000, share=0.25)
    assert cost_tokens(replica) == 120 + PREFILL_COST * 10_000 * 0.25
    busy = replace(replica, load=ReplicaLoad("SERVING", active=3, queued=2, outstanding_tokens=120))
    assert cost_tokens(busy) == 125
