"""Any sequence of edits, in any world that is small enough: a good revision in the end always gets there, and nobody pays for it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_testing.rolling import Behaviour, World

GOOD, FINAL = "aaaaaaaa", "ffffffff"
BEHAVIOURS = {
    "11111111": Behaviour(),
    "22222222": Behaviour(failed_share=0.5),
    "33333333": Behaviour(tpot_s=0.2),
    "44444444": Behaviour(crashes=True),
    "55555555": Behaviour(never_ready=True),
    "66666666": Behaviour(forbidden=True),
    "77777777": Behaviour(silent=True, start_s=90.0),
}
BAD = {"22222222", "33333333", "44444444", "55555555", "66666666"}

acts = st.lists(
    st.tuples(
        st.sampled_from(("change", "change", "back", "scale", "places", "forget")),
        st.sampled_from(sorted(BEHAVIOURS)),
        st.integers(1, 4),
        st.sampled_from((5.0, 30.0, 120.0, 600.0)),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(acts, st.sampled_from(("Auto", "Surge", "InPlace")), st.integers(1, 2))
def test_edits_in_any_order_end_with_the_last_good_one(
    acts: list[tuple[str, str, int, float]], strategy: str, max_unavailable: int
) -> None:
    world = World(GOOD, places=5, wanted=3, strategy=strategy, max_unavailable=max_unavailable)
    world.behaviours = dict(BEHAVIOURS)
    world.steady()
    least_wanted = 3
    for act, revision, number, seconds in acts:
        match act:
            case "change":
                world.change(revision)
            case "back":
                world.change(GOOD)
            case "scale":
                # Where all may go at once there is nothing left to compare with, and a slow one passes (decision 0012).
                replicas = max(number, max_unavailable + 1) if strategy == "InPlace" else number
                world.scale(replicas)
                least_wanted = min(least_wanted, replicas)
            case "places":
                world.places = max(4, number + 2)
            case _:
                world.forget()
        world.run(seconds)
    # The world itself checks that no plan goes on for ever, no name is used twice and no stream is cut.
    floor = 0 if strategy == "InPlace" else 1
    assert world.least_ready >= max(floor, least_wanted - max_unavailable), world.tell()
    assert not any(world.verdict(revision) == "good" for revision in BAD), "a bad one has passed"
    world.places = 6
    world.change(FINAL)
    world.run(3 * 3600.0, lambda: world.ready(FINAL) == world.fleet.replicas == len(world.pods))
    assert world.ready(FINAL) == world.fleet.replicas, world.tell()
    assert world.condition("RolloutHeld").startswith("False")
    assert len(world.history) <= 10
