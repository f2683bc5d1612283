"""The real core in a simulated world: a few seeds hold every rule, and planted bugs do not get through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from moefleet_operator.core.lease import LeaseMachine
from moefleet_operator.core.store import Store
from moefleet_operator.planning import drain, plan, shape
from moefleet_operator.planning.observed import Observed, Replica
from moefleet_operator.planning.steps import DeleteReplica
from moefleet_testing.simulate import simulate
from moefleet_testing.simulator.world import RuleBrokenError

# A planted bug has to be caught within so many stories; each takes about a second.
SEEDS_TO_CATCH = 12


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_story_holds_every_rule(seed: int) -> None:
    scenario = simulate(seed)
    assert scenario.requests > 100, "a story without requests would prove nothing"
    assert sum(g.served for g in scenario.gateways) > 100


def test_the_same_seed_is_the_same_story() -> None:
    first, second = simulate(6), simulate(6)
    assert first.world.story == second.world.story
    assert first.world.events == second.world.events


def ignore_taken_names(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(plan, "free_slots", lambda _taken, _rendered, count: list(range(count)))


def delete_without_waiting_for_streams(patch: pytest.MonkeyPatch) -> None:
    def at_once(_observed: Observed, replica: Replica, _now: float) -> drain.Leg:
        step = DeleteReplica(name=replica.name, uid=replica.uid, reason="Bug", message="planted", grace_s=1)
        return drain.Leg((step,))

    patch.setattr(drain, "road", at_once)


def count_pending_as_nothing(patch: pytest.MonkeyPatch) -> None:
    good: Callable[[Any], bool] = Replica.live.fget  # type: ignore[attr-defined]
    patch.setattr(Replica, "live", property(lambda self: good(self) and self.pod.is_true("Ready")))


def act_after_the_lease_is_lost(patch: pytest.MonkeyPatch) -> None:
    # Once leader, always leader, and effects without an end.
    patch.setattr(LeaseMachine, "leading", lambda self, _now: self._act_until > 0)
    patch.setattr(LeaseMachine, "act_until", property(lambda self: self._act_until + 1e6))


def take_old_replicas_before_new_ones_are_ready(patch: pytest.MonkeyPatch) -> None:
    def all_at_once(
        _o: Observed, live: list[Replica], old: list[Replica], _wanted: int, out: shape.Shape
    ) -> None:
        out.drain += [shape.Leaving(r, "Rollout", "planted") for r in old]

    patch.setattr(shape, "_rollout", all_at_once)


def believe_an_old_list(patch: pytest.MonkeyPatch) -> None:
    good = Store.relisted
    patch.setattr(
        Store, "relisted", lambda self, kind, objects, as_of: good(self, kind, objects, as_of + 10**9)
    )


@pytest.mark.parametrize(
    "plant",
    [
        ignore_taken_names,
        delete_without_waiting_for_streams,
        count_pending_as_nothing,
        act_after_the_lease_is_lost,
        take_old_replicas_before_new_ones_are_ready,
        believe_an_old_list,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_breaks_a_rule(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(RuleBrokenError) as caught:
        _tell_stories()
    assert "again: python -m moefleet_testing.simulate --seeds 1 --first" in str(caught.value)


def _tell_stories() -> None:
    for seed in range(1, SEEDS_TO_CATCH + 1):
        simulate(seed)
