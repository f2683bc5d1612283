"""The reference replica: order, chunks, limits and freedom of slots, step by step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_perf import Arrival, Calibration, ReplicaLimits, StepModel, VirtualReplica, simulate

MODEL = StepModel(a_s=1.0, b_s=0.1, c_s=0.01, d_s=0.001)


def small(sequences=4, kv=1000, chunk=10):
    return Calibration("small", MODEL, ReplicaLimits(sequences, kv, chunk), "Made up.")


def test_one_request_costs_its_prompt_then_one_step_a_token():
    [outcome] = simulate(small(chunk=100), [Arrival("r", 0.0, 20, 3)])
    prefill_s = 1.0 + 0.1 * 20
    # The context during the decode steps is the prompt and what was made before.
    decode_s = [1.0 + 0.01 + 0.001 * (20 + made) for made in (1, 2)]
    assert outcome.ttft_s == pytest.approx(prefill_s)
    assert outcome.last_token_s == pytest.approx(prefill_s + sum(decode_s))
    assert outcome.tpot_s == pytest.approx(sum(decode_s) / 2)


def test_a_long_prompt_is_cut_into_chunks_and_decode_goes_on_beside_it():
    replica = VirtualReplica(small(chunk=10))
    replica.submit(Arrival("short", 0.0, 4, 9))
    first = replica.run_step(0.0)
    assert (first.prefill_tokens, first.sequences, first.tokens) == (4, 0, ("short",))
    replica.submit(Arrival("long", first.end_s, 25, 1))
    chunks = []
    now_s = first.end_s
    while True:
        step = replica.run_step(now_s)
        now_s = step.end_s
        chunks.append((step.prefill_tokens, step.sequences))
        assert "short" in step.tokens
        if "long" in step.finished:
            break
    # One of ten tokens of each step belongs to the sequence that decodes.
    assert chunks == [(9, 1), (9, 1), (7, 1)]


def test_cached_tokens_are_not_computed_again():
    [cold] = simulate(small(chunk=100), [Arrival("r", 0.0, 50, 1)])
    [warm] = simulate(small(chunk=100), [Arrival("r", 0.0, 50, 1, cached_tokens=50)])
    assert cold.ttft_s - warm.ttft_s == pytest.approx(49 * 0.1)


def test_no_slot_or_no_cache_means_waiting_in_order():
    for calibration in (small(sequences=1, chunk=100), small(kv=30, chunk=100)):
        arrivals = [Arrival("a", 0.0, 10, 10), Arrival("b", 0.0, 10, 10), Arrival("c", 0.0, 1, 1)]
        outcomes = {o.arrival.request_id: o for o in simulate(calibration, arrivals)}
        assert outcomes["b"].first_token_s > outcomes["a"].last_token_s
        # First come, first served: the small one does not overtake.
        assert outcomes["c"].first_token_s > outcomes["a"].last_token_s


def test_a_full_chunk_of_decoding_still_reads_one_prompt_token_a_step():
    replica = VirtualReplica(small(sequences=5, chunk=2))
    for name in ("a", "b"):
        replica.submit(Arrival(name, 0.0, 1, 50))
    now_s = replica.run_step(0.0).end_s
    replica.submit(Arrival("late", now_s, 3, 1))
    seen = []
    for _ in range(3):
        step = replica.run_step(now_s)
        now_s = step.end_s
        seen.append((step.prefill_tokens, step.sequences))
    assert seen == [(1, 2), (1, 2), (1, 2)]
    assert "late" in step.finished


def test_cancelling_frees_slot_and_cache_wherever_the_request_is():
    replica = VirtualReplica(small(sequences=2, kv=60, chunk=10))
    for name in ("decoding", "prefilling", "waiting"):
        replica.submit(Arrival(name, 0.0, 9, 20))
    replica.run_step(0.0)
    assert (replica.active, replica.queued) == (2, 1)
    for name in ("decoding", "prefilling", "waiting"):
        assert replica.cancel(name)
        assert not replica.cancel(name)
    assert replica.idle
    assert replica.run_step(9.0) is None
    assert (
        replica.kv_used_tokens,
        replica.outstanding_prefill_tokens,
        replica.outstanding_decode_tokens,
    ) == (0, 0, 0)
    # All of the cache is there again.
    replica.submit(Arrival("next", 9.0, 30, 30))
    assert replica.run_step(9.0) is not None


def test_what_can_never_fit_is_refused_at_the_door():
    replica = VirtualReplica(small(kv=100))
    with pytest.raises(
        ValueError, match="request r: 90 tokens in and 11 out never fit a cache of 100 tokens"
    ):
        replica.submit(Arrival("r", 0.0, 90, 11))
    with pytest.raises(ValueError, match="at least 1 token in and out"):
        replica.submit(Arrival("r", 0.0, 0, 1))


REQUESTS = st.lists(
    st.tuples(st.floats(0, 50), st.integers(1, 40), st.integers(1, 20), st.integers(0, 40)),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60)
@given(REQUESTS)
def test_every_request_gets_exactly_its_tokens_and_no_limit_is_passed(requests):
    calibration = small(sequences=4, kv=100, chunk=10)
    replica = VirtualReplica(calibration)
    got = {}
    now_s = 0.0
    for i, (_, prompt, output, cached) in enumerate(requests):
        replica.submit(Arrival(str(i), 0.0, prompt, output, cached))
    while (step := replica.run_step(now_s)) is not None:
        now_s = step.end_s
        assert step.sequences <= calibration.limits.max_sequences
        assert step.kv_tokens <= calibration.limits.kv_max_tokens
        assert step.prefill_tokens + step.sequences <= calibration.limits.max_batch_tokens
        for name in step.tokens:
            got[name] = got.get(name, 0) + 1
    assert got == {str(i): output for i, (_, _, output, _) in enumerate(requests)}
    assert replica.idle
    assert replica.kv_used_tokens == 0


def test_a_long_prompt_pays_for_the_context_that_its_chunks_attend_to():
    slow = Calibration(
        "small", StepModel(1.0, 0.1, 0.01, 0.001, e_s=0.01), ReplicaLimits(4, 1000, 10), "Made up."
    )
    [plain] = simulate(small(chunk=10), [Arrival("r", 0.0, 30, 1, cached_tokens=5)])
    [outcome] = simulate(slow, [Arrival("r", 0.0, 30, 1, cached_tokens=5)])
    # Chunks of 10, 10 and 5 tokens after 5, 15 and 25 tokens of context, and half of their own.
    assert outcome.ttft_s - plain.ttft_s == pytest.approx(0.01 * (10 * 10 + 10 * 20 + 5 * 27.5))


def test_preempting_admits_more_and_the_youngest_pays():
    calibration = small(kv=60, chunk=100)
    arrivals = [Arrival("old", 0.0, 20, 20), Arrival("young", 0.0, 20, 15)]
    reserved = {o.arrival.request_id: o for o in simulate(calibration, arrivals)}
    eager = {o.arrival.request_id: o for o in simulate(calibration, arrivals, preempting=True)}
    # 40 and 35 tokens do not fit 60 together, but the prompts do.
    assert reserved["young"].first_token_s > reserved["old"].last_token_s
    assert eager["young"].first_token_s == eager["old"].first_token_s < reserved["young"].first_token_s
    # With 30 tokens each the cache is full: the younger one leaves, and goes on when the older one has ended.
    assert eager["young"].last_token_s > eager["old"].last_token_s


@given(
    arrivals=st.lists(
        st.tuples(st.floats(0, 50), st.integers(1, 40), st.integers(1, 30), st.integers(0, 20)),
        min_size=1,
        max_size=25,
    ),
    kv=st.integers(70, 200),
)
@settings(deadline=None, max_examples=60)
def test_preempting_never_holds_more_than_the_cache_and_everybody_ends(arrivals, kv):
    replica = VirtualReplica(small(sequences=6, kv=kv, chunk=16), preempting=True)
    waiting = [Arrival(str(i), *a) for i, a in enumerate(sorted(arrivals))]
    now_s, tokens, ended = 0.0, dict.fromkeys((a.request_id for a in waiting), 0), set()
    lengths = {a.request_id: a.output_tokens for a in waiting}
    while waiting or not replica.idle:
        while waiting and waiting[0].at_s <= now_s:
            replica.submit(waiting.pop(0))
        step = replica.run_step(now_s)
        if step is None:
            now_s = waiting[0].at_s
            continue
        now_s = step.end_s
        assert replica.kv_used_tokens <= kv
        for request in step.tokens:
            tokens[request] += 1
        ended.update(step.finished)
    # No token is made twice: what was preempted goes on where it was.
    assert tokens == lengths
    assert ended == set(lengths)
