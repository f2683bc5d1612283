"""Where the time of a cold start went: from creating a pod to Ready, by phase. Pure.

    created -scheduling-> on a node -pulling-> container runs -fetching-> weights are here -loading-> engine can step (of this, where it tells: tuning)
            -warming-> its canary passed -registering-> gateways know it, Ready

The first two and the last are what the kubelet wrote, in whole seconds; the others the replica tells. A container that was started
again has `restarting` instead of pulling: all until its last process began. Where a replica told nothing, what is between is `starting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .observed import Replica

PHASES: Final = (
    "scheduling",
    "pulling",
    "restarting",
    "starting",
    "fetching",
    "loading",
    "tuning",
    "warming",
    "registering",
)
# So many of a revision's own starts are needed before it is judged by them alone.
TRUSTED_STARTS: Final = 3


@dataclass(frozen=True, slots=True)
class ColdStart:
    revision: str
    total_s: float
    # In the order of PHASES, those that took any time; seconds. Their sum is total_s but for the rounding of the kubelet's times.
    phases_s: tuple[tuple[str, float], ...]


def cold_start(replica: Replica, *, watched: bool) -> ColdStart | None:
    """None while it is not Ready, or when nobody can say how long it took.

    `watched`: it was seen from its creation on and was never Ready before. Only then are failed attempts (restarts) its own and
    not those of a replica that served in between."""
    pod, container = replica.pod, replica.pod.container
    ready_at = pod.since("Ready")
    if ready_at is None or container is None or (container.restarts and not watched):
        return None
    total_s = max(0.0, ready_at - pod.created_at)
    scheduled_at, began_at = pod.since("PodScheduled"), container.started_at
    spent: dict[str, float] = {}
    if scheduled_at is not None:
        spent["scheduling"] = scheduled_at - pod.created_at
        if began_at is not None:
            spent["restarting" if container.restarts else "pulling"] = began_at - scheduled_at
    if began_at is not None:
        told = replica.load.start if replica.load is not None else None
        if told is None:
            spent["starting"] = ready_at - began_at
        else:
            spent["fetching"] = told.fetch_s
            # What an engine does not tell is no phase: it stays in loading.
            tune_s = told.tune_s or 0.0
            spent["loading"] = told.load_s - told.fetch_s - tune_s
            spent["tuning"] = tune_s
            spent["warming"] = told.start_s - told.load_s
            spent["registering"] = ready_at - began_at - told.start_s
    phases = tuple((name, spent[name]) for name in PHASES if spent.get(name, 0.0) > 0.0)
    return ColdStart(pod.revision, total_s, phases)


def of_revision(starts: Sequence[ColdStart], revision: str) -> list[ColdStart]:
    """The starts that say what the next one will take: the revision's own, once there are enough; else all there are."""
    own = [start for start in starts if start.revision == revision]
    return own if len(own) >= TRUSTED_STARTS else list(starts)


def phase_medians_s(starts: Sequence[ColdStart]) -> dict[str, float]:
    """Median seconds of each phase that any of them had, 0 counted for those that had it not."""
    found: dict[str, float] = {}
    for name in PHASES:
        values = sorted(dict(start.phases_s).get(name, 0.0) for start in starts)
        if values and values[-1] > 0:
            found[name] = values[len(values) // 2]
    return found
