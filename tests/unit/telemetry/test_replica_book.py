"""Replicas' samples become loads for draining, a load for the law, and totals that outlive the pods."""

import pytest
from moefleet.replica.v1 import replica_pb2 as pb
from moefleet_operator.core.events import Key
from moefleet_operator.scaling import Load, ServedTotals
from moefleet_operator.telemetry import ReplicaTarget
from moefleet_operator.telemetry.replicas import LOAD_STALE_S, ReplicaBook
from moefleet_perf import StepModel
from moefleet_perf.online import HALF_LIFE_S

CHAT = Key("team", "chat")
NOW = 1_700_000_000.0
SERVING, DRAINING, STARTING = pb.REPLICA_STATE_SERVING, pb.REPLICA_STATE_DRAINING, pb.REPLICA_STATE_STARTING


def target(uid, ready=True, fleet=CHAT):
    return ReplicaTarget(uid, fleet, "fleet-1", "127.0.0.1:8501", ready)


def load(uid, seq=1, state=SERVING, incarnation="a", **facts):
    return pb.LoadSample(pod_uid=uid, incarnation=incarnation, seq=seq, state=state, **facts)


def book(*targets):
    made = ReplicaBook()
    made.expect(targets)
    return made


def test_the_load_of_a_fleet_is_what_its_serving_replicas_carry():
    made = book(target("a"), target("b"), target("c", ready=False), target("x", fleet=Key("team", "other")))
    for uid, state in (("a", SERVING), ("b", DRAINING), ("c", STARTING), ("x", SERVING)):
        made.put(uid, load(uid, state=state, active=2, queued=1, kv_used_tokens=10, kv_max_tokens=100), NOW)
    assert made.fleet_load(CHAT, NOW) == Load(1, 2, 1, 0, 0, 10, 100)
    assert {uid: found.state for uid, found in made.loads(NOW).items()} == {
        "a": "SERVING", "b": "DRAINING", "c": "STARTING", "x": "SERVING",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("story", "ready", "heard", "lost", "after_s", "silent"),
    [
        ("a ready replica that was never heard", True, False, False, 0.0, 1),
        ("one that starts may be silent", False, False, False, 0.0, 0),
        ("one that speaks", True, True, False, LOAD_STALE_S, 0),
        ("one that has stopped to", True, True, False, LOAD_STALE_S + 1, 1),
        ("one whose stream broke", True, True, True, 0.0, 1),
    ],
)
def test_silence(story, ready, heard, lost, after_s, silent):  # noqa: PLR0917 - a table row
    made = book(target("a", ready))
    if heard:
        made.put("a", load("a", active=3), NOW)
    if lost:
        made.lost("a")
    assert made.silent(CHAT, NOW + after_s) == silent, story
    known = heard and not lost and not silent
    assert (made.load("a", NOW + after_s) is not None) == known
    assert made.fleet_load(CHAT, NOW + after_s).active == (3 if known else 0)


def test_served_totals_outlive_restarts_and_pods():
    made = book(target("a"), target("b"))
    assert made.served(CHAT) is None
    seen = []
    for uid, seq, incarnation, admitted in (
        ("a", 1, "i", 10), ("b", 40, "i", 500), ("b", 41, "i", 505), ("a", 2, "i", 20), ("a", 1, "j", 3),
    ):  # fmt: skip
        made.put(uid, load(uid, seq, incarnation=incarnation, admitted_total=admitted), NOW)
        seen.append(made.served(CHAT).admitted)
    # b was first heard in the middle of its life.
    assert seen == [10, 10, 15, 25, 28]
    made.expect([])
    assert made.served(CHAT) == ServedTotals(28)


def test_another_pod_at_the_address_and_old_samples_are_not_taken():
    made = book(target("a"))
    assert made.put("a", load("a", seq=5, active=5), NOW)
    assert not made.put("a", load("b", seq=6, active=6), NOW)
    assert not made.put("a", load("a", seq=4, active=4), NOW)
    assert not made.put("z", load("z"), NOW)
    assert made.load("a", NOW).active == 5
    assert made.put("a", load("a", seq=1, incarnation="b", active=1), NOW)
    assert made.load("a", NOW).active == 1


PRIOR = StepModel(0.01, 1e-5, 1e-5, 1e-9)


def test_steps_of_late_weigh_more():
    made = book(target("a"))

    def report(seq, count, time_s, at):
        made.put("a", load("a", seq, steps=pb.StepSums(count=count, time_s=time_s)), at)
        return made.steps(CHAT, PRIOR, at)

    assert made.steps(CHAT, PRIOR, NOW) == (None, None)
    assert report(1, 100, 1.0, NOW)[0].count == 100
    later, ratio = report(2, 200, 11.0, NOW + HALF_LIFE_S)
    assert (later.count, later.time_s) == pytest.approx((150, 10.5))
    assert ratio == pytest.approx(10.0)
    # Nothing new: nothing changes, and nothing is said of the model.
    assert report(3, 200, 11.0, NOW + 2 * HALF_LIFE_S) == (later, None)


def test_contexts_are_those_of_the_steps_of_all_replicas():
    made = book(target("a"), target("b"))
    assert made.context_tokens(CHAT) is None
    for uid, context in (("a", 1000), ("b", 2000)):
        sums = pb.StepSums(count=100, time_s=1.0, sequences=5000, kv_tokens=5000 * context)
        made.put(uid, load(uid, 1, steps=sums), NOW)
    made.steps(CHAT, PRIOR, NOW)
    assert made.context_tokens(CHAT) == pytest.approx(1500)


def test_another_revision_with_other_steps_is_believed_within_a_minute():
    made = book(target("old"), target("new"))
    for i in range(1, 20):
        uid, time_s, begun = ("old", 0.01, 0) if i < 8 else ("new", 0.02, 7)
        n = 400 * (i - begun)
        made.put(uid, load(uid, i, steps=pb.StepSums(count=n, time_s=n * time_s)), NOW + 5 * i)
        steps, ratio = made.steps(CHAT, PRIOR, NOW + 5 * i)
        mean_s = steps.time_s / steps.count
        assert mean_s == pytest.approx(0.01 if i < 15 else 0.02), i
        assert ratio == pytest.approx(2.0 if 8 <= i <= 15 else 1.0, rel=0.01), i
    # Nobody knows what a step should take: nothing is learnt.
    assert made.steps(CHAT, None, NOW + 100) == (None, None)


def test_start_times_are_of_those_that_got_there():
    made = book(target("a"), target("b"))
    made.put("a", load("a", start_s=12.5), NOW)
    made.put("b", load("b", state=STARTING), NOW)
    assert made.starts_s(CHAT) == {"a": 12.5}


def test_a_phase_that_an_engine_does_not_tell_is_not_zero():
    made = book(target("a"), target("b"), target("c"))
    made.put("a", load("a", start_s=12.5, load_s=12.0, tune_s=3.0), NOW)
    made.put("b", load("b", start_s=12.5, load_s=12.0, tune_s=0.0), NOW)
    made.put("c", load("c", start_s=12.5, load_s=12.0), NOW)
    assert {uid: said.start.tune_s for uid, said in made.loads(NOW).items()} == {
        "a": 3.0,
        "b": 0.0,
        "c": None,
    }


def test_outstanding_tokens_are_both_kinds():
    made = book(target("a"))
    made.put(
        "a", load("a", outstanding_prefill_tokens=7, outstanding_decode_tokens=5, oldest_active_s=3.5), NOW
    )
    assert (made.load("a", NOW).outstanding_tokens, made.load("a", NOW).oldest_active_s) == (12, 3.5)


def test_a_cache_is_as_warm_as_it_is_found_to_be():
    made = book(target("a"), target("b"), target("c"))
    facts = {
        "prompt_tokens_total": 1000,
        "cached_tokens_total": 250,
        "kv_max_tokens": 400,
        "kv_used_tokens": 300,
    }
    made.put("a", load("a", kv_reusable_tokens=90, **facts), NOW)
    # It does not tell: what was ever found again, as far as there is still room for it.
    made.put("b", load("b", **facts), NOW)
    made.put("c", load("c"), NOW)
    found = made.loads(NOW)
    assert {uid: (s.reusable_tokens, s.hit_share) for uid, s in found.items()} == {
        "a": (90, 0.25), "b": (100, 0.25), "c": (0, 0.0),
    }  # fmt: skip


def test_outcomes_are_passed_on_and_an_older_replica_has_none():
    made = book(target("a"), target("b"))
    told = pb.Outcomes(ended=9, failed=1, first_tokens=8, ttft_s=4.0, paced=7, tpot_s=0.7)
    made.put("a", load("a", outcomes=told, prompt_tokens_total=500, cached_tokens_total=100), NOW)
    made.put("b", load("b"), NOW)
    found = made.load("a", NOW).outcomes
    assert (found.ended, found.failed, found.ttft_s, found.computed_tokens) == (9, 1, 4.0, 400)
    assert made.load("b", NOW).outcomes is None
