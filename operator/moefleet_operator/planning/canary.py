"""The first replica of a new revision against the old ones: may the rest go on, or is the revision refused?

Compared is what happened since the canary became ready, of the same time on both sides: the share of requests that the
replica failed, the mean time to first token and the mean time per output token. Three answers: worse, not worse, not
known yet. Worse is said only where chance is no explanation (two standard errors); what stays unknown does not refuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.pod import RenderedPod

from .drain import CLOCK_SLACK_S
from .failing import failing
from .history import verdict_of
from .observed import Observed, Replica
from .reported import Outcomes
from .revisions import Mark, Opinion, Watch
from .timestamps import rfc3339
from .wording import count

# Share of requests that may fail beyond the old share.
ERROR_MARGIN: Final = 0.01
# Of a canary that there is nothing to compare with: failures that are the replica's own are rare.
ALONE_FAILED_SHARE: Final = 0.1
# Relative and absolute: a tenth of a second is no worse first token, five milliseconds no worse pace.
TTFT_MARGIN, TTFT_FLOOR_S = 0.5, 0.1
TPOT_MARGIN, TPOT_FLOOR_S = 0.2, 0.005
# Standard errors between chance and a difference.
SIGMAS: Final = 2.0
# Fewer say nothing, however bad they are.
ERRORS_MIN_REQUESTS: Final = 3
TIMES_MIN_REQUESTS: Final = 10
# With too few requests the comparison lasts at most so many windows; then the canary passes with what is known.
PATIENCE_WINDOWS: Final = 3
# A process of the new revision that ended so often will end again.
CRASHES_MAX: Final = 3
# What does not pass by itself (no image, a refused configuration) may so long be a registry that is away for a moment.
FAILING_BUDGET_S: Final = 300.0
# States of a replica that is on its way, and its budgets until it is believed no more.
GETS_ON: Final = ("STARTING", "FETCHING", "LOADING", "WARMING")
GETS_ON_BUDGETS: Final = 3
# Beyond the startup probe's own budget: the image, the kubelet, the gateways.
START_SLACK_S: Final = 300.0


def watched(observed: Observed, before: Watch | None, now: float) -> Watch | None:
    """The comparison that is under way: begun when a replica of the wanted revision is ready, with a mark for each replica."""
    revision = observed.revision
    if verdict_of(observed.history or (), revision) or observed.history is None or revision is None:
        return None
    if not any(r.ready and r.pod.revision == revision for r in observed.replicas):
        return None
    watch = before if before is not None and before.revision == revision else Watch(revision, now)
    if watch.began_at > now + CLOCK_SLACK_S:
        # The clock was set back: by it the comparison would last until the old time has come again.
        watch = replace(watch, began_at=now)
    told = {r.uid: r.load for r in observed.replicas if r.ready and r.load is not None}
    marks = {
        uid: watch.marks.get(uid) or Mark(load.incarnation, load.outcomes)
        for uid, load in told.items()
        if load.outcomes is not None
    }
    return watch if marks == watch.marks and watch is before else Watch(revision, watch.began_at, marks)


def opinion(observed: Observed, now: float) -> Opinion:
    """What is to be thought of the wanted revision, which has no verdict yet."""
    revision = observed.revision
    assert revision is not None, "a spec that cannot be rendered has no revision to judge"
    ours = [r for r in observed.replicas if r.pod.revision == revision]
    old = baseline(observed)
    broken = _broken(observed, ours, now)
    if broken is not None and broken.verdict:
        return broken
    ready = [r for r in ours if r.ready]
    if not ready:
        return broken or Opinion("")
    if not old:
        return _alone(observed, ready, now)
    compared = _compare(observed, ready, old, now)
    if not compared.verdict and broken is not None and broken.wake_at is not None:
        return Opinion(
            "", "", compared.message, min(x for x in (broken.wake_at, compared.wake_at) if x is not None)
        )
    return compared


def baseline(observed: Observed) -> list[Replica]:
    """The replicas that the new revision is measured by: ready ones that proved themselves, else any that were not refused."""
    others = [r for r in observed.replicas if r.ready and r.pod.revision != observed.revision]
    verdicts = {r.revision: r.verdict for r in observed.history or ()}
    good = [r for r in others if verdicts.get(r.pod.revision) == "good"]
    return good or [r for r in others if verdicts.get(r.pod.revision) != "refused"]


def _broken(observed: Observed, ours: Sequence[Replica], now: float) -> Opinion | None:
    """Why it will never serve, or until when it may try; None: there is no replica of it."""
    refused = observed.refused.get("create")
    made = f"{observed.fleet.name}-{observed.revision}-"
    if refused is not None and refused.reason == reasons.POD_REFUSED and made in refused.message:
        # The same pod is refused again; and the place of what may be made must not be kept for it.
        return Opinion("refused", reasons.POD_REFUSED, refused.message)
    ended = [r for r in ours if r.pod.finished and _is_own_fault(r)]
    if len(ended) >= CRASHES_MAX:
        last = max(ended, key=lambda r: r.pod.created_at)
        problem = failing(last)
        said = problem.message if problem is not None else last.name
        return Opinion("refused", reasons.CANARY_CRASHES, f"{len(ended)} replicas of it ended; {said}")
    wake_at: float | None = None
    for replica in sorted((r for r in ours if r.live), key=lambda r: r.pod.slot):
        scheduled = replica.pod.since("PodScheduled")
        if replica.ready or scheduled is None:
            continue
        problem, container = failing(replica), replica.pod.container
        if problem is not None and container is not None and container.restarts >= CRASHES_MAX:
            return Opinion("refused", reasons.CANARY_CRASHES, problem.message)
        budget_s = start_budget_s(observed, replica) if problem is None else FAILING_BUDGET_S
        if now >= scheduled + budget_s:
            why = problem.message if problem is not None else f"{replica.name} started and never served"
            return Opinion(
                "refused", reasons.CANARY_NOT_READY, f"not ready {budget_s:.0f} s after it had a node: {why}"
            )
        wake_at = min(wake_at or math.inf, scheduled + budget_s)
    return Opinion("", wake_at=wake_at) if wake_at is not None else None


def start_budget_s(observed: Observed, replica: Replica) -> float:
    """What the startup probe allows a replica, and a little more. The probe ends no start that gets on, so one that says that it
    loads has several times as long: its runtime itself ends a start that stands still."""
    rendered = observed.rendered
    body: Mapping[str, Any] = rendered.body if isinstance(rendered, RenderedPod) else {}
    containers: Sequence[Mapping[str, Any]] = (body.get("spec") or {}).get("containers") or ({},)
    probe = containers[0].get("startupProbe") or {}
    budget_s = float(probe.get("failureThreshold", 600) * probe.get("periodSeconds", 1))
    gets_on = replica.load is not None and replica.load.state in GETS_ON
    return budget_s * (GETS_ON_BUDGETS if gets_on else 1) + START_SLACK_S


def _is_own_fault(replica: Replica) -> bool:
    problem = failing(replica)
    return problem is not None and problem.reason != reasons.POD_EVICTED


def _compare(observed: Observed, canaries: Sequence[Replica], old: Sequence[Replica], now: float) -> Opinion:
    fleet, watch = observed.fleet, observed.watch
    began = _began(observed, canaries, now)
    window_s, wanted = fleet.canary_window_s, fleet.canary_requests
    if window_s <= 0:
        return Opinion("good", message=f"{canaries[0].name} serves, and rollout.canary.window is 0")
    new, before = _sums(canaries, watch), _sums(old, watch)
    name = canaries[0].name
    if new is not None and before is not None and (worse := _worse(new, before)) is not None:
        return Opinion("refused", worse[0], f"{name} against {count(len(old), 'older replica')}: {worse[1]}")
    ends, patience = began + window_s, began + PATIENCE_WINDOWS * window_s
    until = f"{name} is compared with {count(len(old), 'older replica')} until {rfc3339(ends)}"
    if now < ends:
        return Opinion("", message=until, wake_at=_look_again(now, ends, window_s))
    seen = new.ended if new is not None else 0
    idle = new is not None and before is not None and not new.ended and not before.ended
    enough = seen >= wanted and before is not None and before.ended > 0
    if not enough and not idle and now < patience:
        return Opinion(
            "",
            message=f"{name} is compared until {wanted} requests have ended there, or {rfc3339(patience)}",
            wake_at=_look_again(now, patience, window_s),
        )
    if new is None or before is None:
        return Opinion("good", message=f"{name} serves; what became of its requests is not known")
    if not enough:
        return Opinion(
            "good", message=f"{name} serves; {count(seen, 'request')} ended there, too few to compare"
        )
    return Opinion("good", message=f"{name} is not worse: {_numbers(new, before)}")


def _alone(observed: Observed, canaries: Sequence[Replica], now: float) -> Opinion:
    """All were replaced at once, as in place with one replica: nothing says how fast it should be, but a replica that fails
    requests by itself is bad by any measure. Without a revision to go back to nothing would follow from it."""
    window_s, name = observed.fleet.canary_window_s, canaries[0].name
    said = f"{name} serves, and no older replica to compare it with"
    new = _sums(canaries, observed.watch)
    if new is None or observed.good is None or window_s <= 0:
        return Opinion("good", message=said)
    failed = f"{new.failed} of {count(new.ended, 'request')} failed"
    if new.ended >= ERRORS_MIN_REQUESTS and _at_least(new.failed, new.ended) > ALONE_FAILED_SHARE:
        return Opinion(
            "refused",
            reasons.CANARY_ERRORS,
            f"{name}: {failed}, and {100 * ALONE_FAILED_SHARE:g} % is allowed",
        )
    ends = _began(observed, canaries, now) + window_s
    if now < ends:
        until = f"{said}: its failures count until {rfc3339(ends)}"
        return Opinion("", message=until, wake_at=_look_again(now, ends, window_s))
    return Opinion("good", message=f"{said}; {failed}")


def _began(observed: Observed, canaries: Sequence[Replica], now: float) -> float:
    since = [r.pod.since("Ready") or now for r in canaries]
    return max(min(since), observed.watch.began_at if observed.watch is not None else now)


def _look_again(now: float, at: float, window_s: float) -> float:
    """Loads wake nobody while a replica serves: a bad canary is seen within a tenth of the window."""
    return min(at, now + max(1.0, window_s / 10))


def _sums(replicas: Sequence[Replica], watch: Watch | None) -> Outcomes | None:
    """Since the comparison began; None: at least one does not tell."""
    total = Outcomes()
    for replica in replicas:
        load = replica.load
        if load is None or load.outcomes is None:
            return None
        mark = watch.marks.get(replica.uid) if watch is not None else None
        if mark is None:
            continue
        # Another process has begun to count anew.
        total += load.outcomes - mark.outcomes if mark.incarnation == load.incarnation else load.outcomes
    return total


def _worse(new: Outcomes, old: Outcomes) -> tuple[str, str] | None:
    """Reason and sentence, or None: not worse, as far as can be known."""
    if new.ended >= ERRORS_MIN_REQUESTS:
        allowed = (old.failed / old.ended if old.ended else 0.0) + ERROR_MARGIN
        if _at_least(new.failed, new.ended) > allowed:
            return reasons.CANARY_ERRORS, (
                f"{new.failed} of {count(new.ended, 'request')} failed, before it was {old.failed} of {old.ended}; "
                f"{100 * ERROR_MARGIN:g} % more is allowed"
            )
    ttft = _slower(
        (new.first_tokens, new.ttft_s, new.ttft_s_squared),
        (old.first_tokens, old.ttft_s),
        # A new replica's cache is cold: what it has to compute more of is no fault of its revision.
        max(1.0, _computed(new) / _computed(old)) * (1 + TTFT_MARGIN),
        TTFT_FLOOR_S,
    )
    if ttft is not None:
        return reasons.CANARY_SLOWER, f"the first token takes {ttft}"
    tpot = _slower(
        (new.paced, new.tpot_s, new.tpot_s_squared), (old.paced, old.tpot_s), 1 + TPOT_MARGIN, TPOT_FLOOR_S
    )
    return (reasons.CANARY_SLOWER, f"each further token takes {tpot}") if tpot is not None else None


def _computed(sums: Outcomes) -> float:
    """Prompt tokens computed for one request; at least 1."""
    return max(1.0, sums.computed_tokens / sums.first_tokens) if sums.first_tokens else 1.0


def _at_least(failed: int, ended: int) -> float:
    """Lower end of the Wilson interval of the share that fails (E. B. Wilson, 1927)."""
    share, z2 = failed / ended, SIGMAS**2
    centre = share + z2 / (2 * ended)
    spread = SIGMAS * math.sqrt(share * (1 - share) / ended + z2 / (4 * ended**2))
    return (centre - spread) / (1 + z2 / ended)


def _slower(
    new: tuple[int, float, float], old: tuple[int, float], factor: float, floor_s: float
) -> str | None:
    """`new`: count, sum, sum of squares; `old`: count, sum."""
    if new[0] < TIMES_MIN_REQUESTS or old[0] < TIMES_MIN_REQUESTS:
        return None
    mean_s, old_s = new[1] / new[0], old[1] / old[0]
    variance = max(0.0, new[2] / new[0] - mean_s**2) * new[0] / (new[0] - 1)
    error_s = math.sqrt(variance / new[0])
    allowed_s = old_s * factor + floor_s
    if mean_s - SIGMAS * error_s <= allowed_s:
        return None
    return (
        f"{_ms(mean_s)} in the mean of {new[0]}, before it was {_ms(old_s)} (of {old[0]}); "
        f"{_ms(allowed_s)} is allowed"
    )


def _numbers(new: Outcomes, old: Outcomes) -> str:
    said = [f"{new.failed} of {count(new.ended, 'request')} failed (before {old.failed} of {old.ended})"]
    for what, n, total, m, before in (
        ("first token", new.first_tokens, new.ttft_s, old.first_tokens, old.ttft_s),
        ("further tokens", new.paced, new.tpot_s, old.paced, old.tpot_s),
    ):
        if n and m:
            said.append(f"{what} {_ms(total / n)} (before {_ms(before / m)})")
    return ", ".join(said)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"
