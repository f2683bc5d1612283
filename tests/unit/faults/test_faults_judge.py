"""The verdict over a fault's requests: each promise, and the sentence when it does not hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from moefleet_faults.ended import End, Ended
from moefleet_faults.judge import Seen, count, judge
from moefleet_faults.scenario import Hold

REPLICA = Hold(touched="replica", plain_statuses=["UNAVAILABLE"])
NOBODY = Hold()


def ended(**changes: Any) -> Ended:
    good = Ended(
        "r", "plain", began_s=1.0, ended_s=20.0, end=End.OK, tokens=[7, 8], trailer_tokens=2, pods=["hurt"]
    )
    return replace(good, **changes)


GATEWAY = Hold(touched="gateway", plain_statuses=["UNAVAILABLE"])
OURS_WENT_ON = ended(client="ours", resumed=1, pods=["hurt", "well"])
PLAIN_CUT = ended(end=End.CUT, code="UNAVAILABLE", detail="the replica is gone", trailer_tokens=None)
GOOD = Seen(
    [OURS_WENT_ON, PLAIN_CUT, ended(pods=["well"])], injected_s=10.0, hurt=frozenset({"hurt"}), ran_in_hurt=2
)
QUIET = Seen([ended(), ended(client="ours")], injected_s=10.0)


def test_a_good_run_breaks_nothing() -> None:
    assert judge(REPLICA, GOOD) == []
    assert judge(NOBODY, QUIET) == []


@pytest.mark.parametrize(
    ("hold", "seen", "sentence"),
    [
        (NOBODY, replace(QUIET, requests=[]), "no request ended well"),
        (NOBODY, replace(QUIET, requests=[ended(ended_s=9.0)]), "no request ended well"),
        (NOBODY, replace(QUIET, unrecovered="1 of 2 ready"), "1 of 2 ready"),
        (REPLICA, replace(GOOD, ran_in_hurt=0), "no stream ran in what was wounded"),
        (
            NOBODY,
            replace(QUIET, requests=[*QUIET.requests, ended(right=False)]),
            "1 answers with wrong tokens",
        ),
        (NOBODY, replace(QUIET, requests=[ended(trailer_tokens=1)]), "says 1 of 2"),
        (NOBODY, replace(QUIET, requests=[ended(trailer_tokens=None)]), "says None of 2"),
        (
            NOBODY,
            replace(QUIET, requests=[*QUIET.requests, PLAIN_CUT]),
            "1 requests were touched, wanted none",
        ),
        # One of ours that went on was touched all the same.
        (
            NOBODY,
            replace(QUIET, requests=[*QUIET.requests, OURS_WENT_ON]),
            "1 requests were touched, wanted none",
        ),
        (REPLICA, replace(GOOD, hurt=frozenset({"another"})), "2 requests elsewhere were touched"),
        (
            REPLICA,
            replace(GOOD, requests=[*GOOD.requests, replace(PLAIN_CUT, code="INTERNAL")]),
            "1 plain requests ended with another status",
        ),
        # A status without a word says nothing.
        (
            REPLICA,
            replace(GOOD, requests=[*GOOD.requests, replace(PLAIN_CUT, detail="")]),
            "1 plain requests ended with another status",
        ),
        (
            REPLICA,
            replace(
                GOOD,
                requests=[
                    *GOOD.requests,
                    ended(end=End.FAILED, code="UNAVAILABLE", detail="no", began_s=11, pods=[]),
                ],
            ),
            "1 new plain requests failed, wanted at most 0",
        ),
        (
            REPLICA,
            replace(GOOD, requests=[*GOOD.requests, ended(client="ours", end=End.CUT, code="INTERNAL")]),
            "50.0 % of our streams that broke went on; wanted 95 %",
        ),
    ],
)
def test_each_broken_promise_is_a_sentence(hold: Hold, seen: Seen, sentence: str) -> None:
    told = judge(hold, seen)
    assert len([t for t in told if sentence in t]) == 1, told


def test_a_connection_breaks_with_all_its_streams_or_it_did_not_go_through_the_wounded_gateway() -> None:
    through_it = replace(OURS_WENT_ON, connection="ours 0", pods=["a"])
    plain = replace(PLAIN_CUT, through="10.0.0.1:8080", pods=["b"])
    other = ended(client="ours", connection="ours 1", pods=["a"])
    seen = Seen([through_it, plain, other], 10.0, frozenset({"10.0.0.1:8080"}), ran_in_hurt=1)
    assert judge(GATEWAY, seen) == []
    # Two streams of one connection, of which one went on as if nothing had been.
    alone = replace(through_it, connection="ours 1")
    (sentence,) = judge(GATEWAY, replace(seen, requests=[*seen.requests, alone]))
    assert "1 requests elsewhere were touched" in sentence
    elsewhere = replace(plain, through="10.0.0.2:8080")
    (sentence,) = judge(GATEWAY, replace(seen, requests=[*seen.requests, elsewhere]))
    assert "1 requests elsewhere were touched" in sentence


def test_who_may_be_refused_is_named_by_the_scenario() -> None:
    refused = ended(
        end=End.FAILED, code="UNAVAILABLE", detail="the picker is away", began_s=11.0, tokens=[], pods=[]
    )
    hold = Hold(plain_statuses=["UNAVAILABLE"], new_may_fail=1)
    assert judge(hold, replace(QUIET, requests=[*QUIET.requests, refused])) == []
    assert judge(hold, replace(QUIET, requests=[*QUIET.requests, refused, refused]))
    assert judge(hold, replace(QUIET, requests=[*QUIET.requests, replace(refused, code="UNKNOWN")]))


def test_numbers_of_a_row() -> None:
    numbers = count(GOOD.requests)
    assert (numbers.ours, numbers.plain, numbers.cut, numbers.ours_broke, numbers.ours_resumed) == (
        1,
        2,
        1,
        1,
        1,
    )
    assert (numbers.tokens, numbers.trailer_tokens) == (4, 4)
    assert numbers.plain_statuses == {"UNAVAILABLE": 1}
