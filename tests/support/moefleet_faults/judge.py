"""The verdict over a scenario's requests. Pure: what was seen goes in, sentences about what did not hold come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .ended import End, Ended
from .scenario import Hold

# From the first step until it hurts: who is hurt is looked up first.
WOUND_S = 2.0


@dataclass(frozen=True, slots=True)
class Seen:
    """`hurt`: pod uids of replicas and addresses of gateways that were wounded. `injected_s`: the first wound."""

    requests: Sequence[Ended]
    injected_s: float
    hurt: frozenset[str] = frozenset()
    # Streams that ran in what was wounded, at that moment.
    ran_in_hurt: int = 0
    unrecovered: str = ""


@dataclass(frozen=True, slots=True)
class Numbers:
    """One row of the table; counts of requests, tokens and seconds."""

    ours: int = 0
    plain: int = 0
    failed: int = 0
    cut: int = 0
    ours_broke: int = 0
    ours_resumed: int = 0
    handed_over: int = 0
    tokens: int = 0
    trailer_tokens: int = 0
    longest_pause_s: float = 0.0
    # "INTERNAL" or "UNAVAILABLE/ENGINE_DIED" to how often plain clients saw it.
    plain_statuses: dict[str, int] = field(default_factory=dict)


def count(requests: Sequence[Ended]) -> Numbers:
    ours = [r for r in requests if r.client == "ours"]
    plain = [r for r in requests if r.client == "plain"]
    well = [r for r in requests if r.end is End.OK]
    statuses = Counter(status(r) for r in plain if r.end is not End.OK)
    return Numbers(
        ours=len(ours),
        plain=len(plain),
        failed=sum(r.end is End.FAILED for r in requests),
        cut=sum(r.end is End.CUT for r in requests),
        ours_broke=sum(r.broke for r in ours),
        ours_resumed=sum(r.broke and r.end is End.OK for r in ours),
        handed_over=sum(r.handed_over for r in requests),
        tokens=sum(len(r.tokens) for r in well),
        trailer_tokens=sum(r.trailer_tokens or 0 for r in well),
        longest_pause_s=max((r.longest_pause_s for r in ours), default=0.0),
        plain_statuses=dict(statuses),
    )


def status(request: Ended) -> str:
    return f"{request.code}/{request.reason}" if request.reason else request.code


def judge(hold: Hold, seen: Seen) -> list[str]:
    """Every promise that did not hold, as a sentence; empty is success."""
    numbers = count(seen.requests)
    broken = [seen.unrecovered] if seen.unrecovered else []
    if not any(r.end is End.OK and r.ended_s > seen.injected_s for r in seen.requests):
        broken.append("no request ended well after the wound: nothing was shown")
    if hold.touched != "nobody" and not seen.ran_in_hurt:
        broken.append("no stream ran in what was wounded: nothing was shown")
    wrong = [r for r in seen.requests if not r.right]
    if wrong:
        broken.append(f"{len(wrong)} answers with wrong tokens, the first {wrong[0].request_id}")
    unlike = [r for r in seen.requests if r.end is End.OK and r.trailer_tokens != len(r.tokens)]
    if unlike:
        one = unlike[0]
        broken.append(
            f"{len(unlike)} usage trailers differ from the tokens delivered: {one.request_id} says "
            f"{one.trailer_tokens} of {len(one.tokens)}"
        )
    broken += _touched(hold, seen)
    if numbers.ours_broke:
        percent = 100 * numbers.ours_resumed / numbers.ours_broke
        if percent < hold.ours_resumed_percent:
            broken.append(
                f"{percent:.1f} % of our streams that broke went on; wanted {hold.ours_resumed_percent:g} %"
            )
    return broken


def _touched(hold: Hold, seen: Seen) -> list[str]:
    broken = []
    bad = [r for r in seen.requests if r.broke]
    if hold.touched == "nobody":
        # Refused before anything came, and named in the scenario.
        refused = [
            r for r in bad if r.client == "plain" and r.end is End.FAILED and r.began_s >= seen.injected_s
        ]
        rest = [r for r in bad if r not in refused]
        if rest:
            broken.append(f"{len(rest)} requests were touched, wanted none: {_told(rest)}")
        bad = refused
    else:
        strangers = _strangers(hold, seen, bad)
        if strangers:
            broken.append(f"{len(strangers)} requests elsewhere were touched: {_told(strangers)}")
    plain = [r for r in bad if r.client == "plain" and r.end is not End.OK]
    late = [r for r in plain if r.began_s >= seen.injected_s and r.end is End.FAILED]
    if len(late) > hold.new_may_fail:
        broken.append(
            f"{len(late)} new plain requests failed, wanted at most {hold.new_may_fail}: {_told(late)}"
        )
    if hold.plain_statuses:
        untrue = [r for r in plain if r.code not in hold.plain_statuses or not r.detail]
        if untrue:
            broken.append(f"{len(untrue)} plain requests ended with another status: {_told(untrue)}")
    return broken


def _strangers(hold: Hold, seen: Seen, bad: Sequence[Ended]) -> list[Ended]:
    match hold.touched:
        case "replica":
            # Who got no header yet cannot be told apart by its replica.
            return [r for r in bad if (r.pods or r.through) and not ({*r.pods, r.through} & seen.hurt)]
        case "gateway":
            # Nobody sees through which gateway a connection to the Service goes; but it breaks with all its streams or none.
            alive = {
                r.connection
                for r in seen.requests
                if r.began_s < seen.injected_s and r.ended_s > seen.injected_s + WOUND_S and not r.broke
            } - {""}
            return [r for r in bad if r.connection in alive or (r.through and r.through not in seen.hurt)]
        case _:
            return []


def _told(requests: Sequence[Ended]) -> str:
    one = requests[0]
    return f"{one.request_id} ({one.client}) {one.end} {status(one)} {one.detail[:160]!r}"
