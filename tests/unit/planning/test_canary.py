"""The comparison of a canary with the old replicas: worse, not worse, not known. Chance is no reason to refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_operator.planning.canary import opinion, watched
from moefleet_operator.planning.observed import Observed, Replica
from moefleet_operator.planning.reported import Outcomes, ReplicaLoad
from moefleet_operator.planning.revisions import Mark, PastRevision, Watch
from moefleet_testing.builders import NEW, NOW, OLD, a_fleet, a_rendered, observed, ready, true

WINDOW_S = 60.0


def sums(
    n: int,
    *,
    failed: int = 0,
    ttft: float = 0.2,
    tpot: float = 0.05,
    spread: float = 0.2,
    computed: int = 100,
) -> Outcomes:
    """n requests; half are `spread` above the mean times, half below."""
    return Outcomes(
        ended=n,
        failed=failed,
        first_tokens=n,
        ttft_s=n * ttft,
        ttft_s_squared=n * ttft**2 * (1 + spread**2),
        paced=n,
        tpot_s=n * tpot,
        tpot_s_squared=n * tpot**2 * (1 + spread**2),
        computed_tokens=n * computed,
    )


def told(replica: Replica, outcomes: Outcomes | None, incarnation: str = "1") -> Replica:
    pod = replica.pod
    since = {**pod.conditions, "Ready": true(at=NOW - 3600)}
    load = ReplicaLoad("SERVING", incarnation=incarnation, outcomes=outcomes)
    return Replica(replace(pod, conditions=since), load)


def seen(
    new: Outcomes | None, old: Outcomes | None, *, since_s: float = 70.0, refused_old: bool = False
) -> Observed:
    """A canary that is ready for an hour, and an old replica; the comparison began `since_s` ago, at zero."""
    replicas = (told(ready(0), new), told(ready(0, OLD), old))
    verdict = "refused" if refused_old else "good"
    history = (
        PastRevision(f"chat-{OLD}", "u", OLD, 1, verdict),
        PastRevision(f"chat-{NEW}", "v", NEW, 2, ""),
    )  # type: ignore[arg-type]
    marks = {r.uid: Mark("1", Outcomes()) for r in replicas}
    return observed(
        *replicas,
        fleet=a_fleet(canary_window_s=WINDOW_S, canary_requests=20),
        history=history,
        watch=Watch(NEW, NOW - since_s, marks),
    )


@pytest.mark.parametrize(
    ("story", "new", "old", "since_s", "expected"),
    [
        ("as good", sums(50), sums(100), 70, ("good", "")),
        ("the window is not over", sums(50), sums(100), 50, ("", "")),
        ("too few requests yet", sums(10), sums(100), 70, ("", "")),
        ("too few, and the patience is over", sums(10), sums(100), 181, ("good", "")),
        ("nobody asks", sums(0), sums(0), 61, ("good", "")),
        ("nobody asks the canary, the others are busy", sums(0), sums(100), 61, ("", "")),
        ("it fails at once", sums(5, failed=5), sums(100), 5, ("refused", "CanaryErrors")),
        ("two failures are no proof", sums(2, failed=2), sums(100), 5, ("", "")),
        ("one failure in fifty is no proof", sums(50, failed=1), sums(100), 70, ("good", "")),
        ("it fails as the old ones do", sums(50, failed=10), sums(100, failed=20), 70, ("good", "")),
        ("it fails more than the old ones do", sums(200, failed=80), sums(200, failed=20), 70, ("refused", "CanaryErrors")),
        ("its steps are slower", sums(50, tpot=0.08), sums(100), 70, ("refused", "CanarySlower")),
        ("a tenth slower is inside the margin", sums(500, tpot=0.055), sums(500), 70, ("good", "")),
        ("a microsecond model: twice of nothing is nothing", sums(50, tpot=0.002), sums(50, tpot=0.001), 70, ("good", "")),
        ("its first token is late", sums(50, ttft=0.9), sums(100), 70, ("refused", "CanarySlower")),
        ("its first token is late by one long prompt in a few", sums(10, ttft=0.6, spread=3.0), sums(100), 181, ("good", "")),
        ("its cache is cold, the others' is warm", sums(50, ttft=0.9, computed=500), sums(100), 70, ("good", "")),
        ("it does not tell", None, sums(100), 70, ("", "")),
        ("it does not tell, and the patience is over", None, sums(100), 181, ("good", "")),
        ("the old ones do not tell", sums(50), None, 181, ("good", "")),
    ],
)  # fmt: skip
def test_opinion(
    story: str, new: Outcomes | None, old: Outcomes | None, since_s: float, expected: tuple[str, str]
) -> None:
    found = opinion(seen(new, old, since_s=since_s), NOW)
    assert (found.verdict, found.reason) == expected, f"{story}: {found.message}"
    assert found.message
    assert found.verdict or found.wake_at is not None, "nobody else would wake it"


def test_without_a_better_one_to_compare_with_serving_is_enough() -> None:
    found = opinion(seen(sums(50, failed=40), sums(100), refused_old=True), NOW)
    assert found.verdict == "good", "the old replica is of a revision that was refused"


@pytest.mark.parametrize(
    ("story", "new", "since_s", "good", "expected"),
    [
        ("it fails everything", sums(3, failed=3), 5, True, ("refused", "CanaryErrors")),
        ("two failures are no proof", sums(2, failed=2), 5, True, ("", "")),
        ("one failure in ten may be chance", sums(10, failed=1), 70, True, ("good", "")),
        ("its failures count for one window", sums(50), 50, True, ("", "")),
        ("nobody asks", sums(0), 61, True, ("good", "")),
        ("slow is not known without a measure", sums(500, tpot=9.0), 61, True, ("good", "")),
        ("nothing to go back to", sums(50, failed=50), 5, False, ("good", "")),
        ("it does not tell", None, 5, True, ("good", "")),
    ],
)
def test_alone(
    story: str, new: Outcomes | None, since_s: float, good: bool, expected: tuple[str, str]
) -> None:
    """In place with one replica: the old one has gone when the new one serves."""
    looked = seen(new, sums(100), since_s=since_s)
    looked = replace(looked, replicas=looked.replicas[:1], good=a_rendered(OLD) if good else None)
    found = opinion(looked, NOW)
    assert (found.verdict, found.reason) == expected, f"{story}: {found.message}"
    assert found.verdict or found.wake_at is not None, "nobody else would wake it"


def test_the_window_of_zero_asks_only_that_it_serves() -> None:
    looked = seen(sums(50), sums(100), since_s=0)
    looked = replace(looked, fleet=replace(looked.fleet, canary_window_s=0.0))
    assert opinion(looked, NOW).verdict == "good"


def test_only_what_happened_since_the_comparison_began_counts() -> None:
    """The old replica failed much, days ago; the canary failed while it warmed up."""
    looked = seen(sums(60, failed=10), sums(1000, failed=500))
    marks = {"uid-1-0": Mark("1", sums(10, failed=10)), "uid-0-0": Mark("1", sums(900, failed=500))}
    looked = replace(looked, watch=Watch(NEW, NOW - 70, marks))
    found = opinion(looked, NOW)
    assert (found.verdict, "0 of 50 requests failed (before 0 of 100)" in found.message) == ("good", True)


def test_a_process_that_began_anew_has_counted_from_zero() -> None:
    looked = seen(sums(60), sums(100))
    marks = {"uid-1-0": Mark("another", sums(5000, failed=5000)), "uid-0-0": Mark("1", Outcomes())}
    assert opinion(replace(looked, watch=Watch(NEW, NOW - 70, marks)), NOW).verdict == "good"


def test_a_watch_begins_when_the_canary_is_ready_marks_who_comes_later_and_ends_with_the_verdict() -> None:
    looked = seen(sums(7), sums(9))
    begun = watched(looked, None, NOW)
    assert begun is not None
    assert (begun.began_at, {uid: m.outcomes.ended for uid, m in begun.marks.items()}) == (NOW, {"uid-1-0": 7, "uid-0-0": 9})  # fmt: skip
    assert watched(looked, begun, NOW + 5) is begun
    later = replace(looked, replicas=(*looked.replicas, told(ready(5, OLD), sums(3))))
    grown = watched(later, begun, NOW + 9)
    assert grown is not None
    assert (grown.began_at, grown.marks["uid-0-5"].outcomes.ended) == (NOW, 3)
    back = watched(looked, begun, NOW - 700)
    assert back is not None
    assert (back.began_at, back.marks) == (NOW - 700, begun.marks), "a clock that was set back (seed 492)"
    assert watched(looked, begun, NOW - 20) is begun
    decided = tuple(replace(r, verdict="good") for r in looked.history or ())
    assert watched(replace(looked, history=decided), begun, NOW + 9) is None
    assert watched(replace(looked, replicas=looked.replicas[1:]), begun, NOW + 9) is None, "it is gone"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.001, 0.5)), min_size=40, max_size=400),
    st.integers(20, 200),
    st.randoms(use_true_random=False),
)
def test_the_same_engine_is_hardly_ever_refused(
    times: list[tuple[float, float]], share: int, random: object
) -> None:
    """Requests of one kind, dealt to both sides by chance."""
    random.shuffle(times)  # type: ignore[attr-defined]
    cut = max(20, len(times) * share // 400)
    new, old = (_sums_of(part) for part in (times[:cut], times[cut:]))
    found = opinion(seen(new, old, since_s=181), NOW)
    means = [sum(t for t, _ in part) / len(part) for part in (times[:cut], times[cut:]) if part]
    paces = [sum(p for _, p in part) / len(part) for part in (times[:cut], times[cut:]) if part]
    inside = len(means) < 2 or (means[0] <= 1.5 * means[1] + 0.1 and paces[0] <= 1.2 * paces[1] + 0.005)
    if inside:
        assert found.verdict == "good", "what is inside the margins is never refused"


def _sums_of(times: list[tuple[float, float]]) -> Outcomes:
    return Outcomes(
        ended=len(times),
        first_tokens=len(times),
        ttft_s=sum(t for t, _ in times),
        ttft_s_squared=sum(t * t for t, _ in times),
        paced=len(times),
        tpot_s=sum(p for _, p in times),
        tpot_s_squared=sum(p * p for _, p in times),
    )
