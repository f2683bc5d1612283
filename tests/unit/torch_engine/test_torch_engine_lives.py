"""The running engine: same tokens whatever happens around a request, and nothing lost when something goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from moefleet_runtime.engine.base import (
    EngineDead,
    EngineFull,
    EngineRequest,
    EngineSettings,
    Finish,
    RequestInvalid,
    StartFailed,
    TokenDelta,
)
from moefleet_runtime.engine.torch import make_engine
from moefleet_runtime.engine.torch.engine import MAX_FAILED_STEPS_IN_A_ROW, TorchEngine
from moefleet_runtime.engine.torch.requests import Row
from moefleet_runtime.tokenizer import load_tokenizer
from moefleet_testing.torch_engine import CHECKPOINT, RunningEngine, Watched, request, settings

TEXTS = (
    "Emma was",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune,",
    "The evening passed",
    "Mr. Darcy",
    "“My dear Mr. Bennet,” said his lady to him one day, “have you heard that Netherfield Park is let at last?”",
    "Captain Wentworth, in the most",
)
TOKENS = 40
# Where the oracle's two best logits lie this near to each other, rounding may choose either.
NEAR_TIE = 1e-3


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    tokenizer = load_tokenizer(CHECKPOINT, 2048)
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def undisturbed(prompts: list[list[int]]) -> list[list[int]]:
    """Each answer made alone, with all the room there is, greedily."""
    with RunningEngine(settings(kv_reuse=False)) as e:
        return [e.answers(request(str(i), p, TOKENS, ignore_eos=True))[0] for i, p in enumerate(prompts)]


def requests_of(prompts: Sequence[Sequence[int]], **changes: Any) -> list[EngineRequest]:
    return [request(f"r{i}", p, TOKENS, ignore_eos=True, **changes) for i, p in enumerate(prompts)]


# ---------------------------------------------------------------- the same tokens, whatever happens around


def test_greedy_answers_equal_transformers(prompts: list[list[int]], undisturbed: list[list[int]]) -> None:
    """Or differ first where the oracle itself could have chosen either: such places are printed."""
    from transformers import DeepseekV2ForCausalLM

    oracle: Any = DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    ties = []
    for text, prompt, ours in zip(TEXTS, prompts, undisturbed, strict=True):
        with torch.inference_mode():
            logits = oracle(torch.tensor([prompt + ours])).logits[0, len(prompt) - 1 : -1]
        theirs = logits.argmax(-1).tolist()
        if ours == theirs:
            continue
        # One pass over our answer: up to the first difference it is what the oracle would generate.
        at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        best = logits[at].topk(2).values
        gap = float(best[0] - best[1])
        ties.append((text, at, gap))
        assert gap < NEAR_TIE, f"{text!r}: token {at}: ours {ours[at]}, oracle {theirs[at]}, {gap} apart"
    print("near ties:", ties)
    assert len(ties) < len(TEXTS)


def test_answers_in_one_batch_equal_those_made_alone(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    with RunningEngine(settings()) as e:
        assert e.answers(*requests_of(prompts)) == undisturbed
        e.check_nothing_held()
        assert e.engine.load().steps.sequences > 0


@pytest.mark.parametrize("budget", [1, 7, 16, 256])
def test_chunked_prompts_give_the_same_tokens_as_whole_ones(
    prompts: list[list[int]], undisturbed: list[list[int]], budget: int
) -> None:
    with RunningEngine(settings(max_batch_tokens=budget)) as e:
        assert e.answers(*requests_of(prompts[1:3])) == undisturbed[1:3]
        e.check_nothing_held()


def test_a_reused_prefix_gives_the_same_tokens_and_is_told(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    prompt = prompts[4]
    with RunningEngine(settings()) as e:
        for name, cached in (("cold", 0), ("warm", (len(prompt) - 1) // 16 * 16)):
            assert e.answers(request(name, prompt, TOKENS, ignore_eos=True)) == [undisturbed[4]]
            assert e.out.first[name].cached_tokens == cached
        load = e.engine.load()
        assert load.cached_tokens_total == cached > 0
        assert load.prompt_tokens_total == 2 * len(prompt)
        # The next turn of a conversation finds the answer as well as the prompt.
        longer = prompt + undisturbed[4] + prompts[0]
        e.answers(request("next turn", longer, 2))
        assert e.out.first["next turn"].cached_tokens >= (len(prompt) + TOKENS - 1) // 16 * 16
        e.check_nothing_held()


def test_tenants_with_different_salts_share_nothing(prompts: list[list[int]]) -> None:
    with RunningEngine(settings()) as e:
        for name, salt in (("first", "a"), ("other", "b"), ("none", "")):
            e.answers(request(name, prompts[4], 4, cache_salt=salt))
            assert e.out.first[name].cached_tokens == 0
        e.answers(request("again", prompts[4], 4, cache_salt="a"))
        assert e.out.first["again"].cached_tokens > 0


@pytest.mark.parametrize("blocks", [9, 12, 20])
def test_a_pool_too_small_for_all_gives_the_same_tokens_and_loses_no_block(
    prompts: list[list[int]], undisturbed: list[list[int]], blocks: int
) -> None:
    """Six requests want 27 blocks: the youngest give way and are computed again."""
    with RunningEngine(settings(blocks=blocks)) as e:
        assert e.answers(*requests_of(prompts)) == undisturbed
        e.check_nothing_held()
        if blocks < 20:
            assert e.engine.load().preempted_total > 0


def test_a_seed_gives_the_same_tokens_alone_in_a_batch_and_after_a_preemption(
    prompts: list[list[int]],
) -> None:
    sampled = [
        request("hot", prompts[0], TOKENS, temperature=1.0, seed=11, ignore_eos=True),
        request("top-k", prompts[1], TOKENS, temperature=0.8, top_k=40, seed=2**64 - 1, ignore_eos=True),
        request("top-p", prompts[2], TOKENS, temperature=1.3, top_p=0.9, seed=0, ignore_eos=True),
        request("both", prompts[3], TOKENS, temperature=0.7, top_k=9, top_p=0.8, seed=5, ignore_eos=True),
    ]
    with RunningEngine(settings(kv_reuse=False)) as e:
        alone = [e.answers(r)[0] for r in sampled]
    with RunningEngine(settings()) as e:
        crowd = [request(f"greedy{i}", p, TOKENS) for i, p in enumerate(prompts)]
        together = e.answers(*sampled, *crowd)[: len(sampled)]
    with RunningEngine(settings(blocks=9)) as e:
        squeezed = e.answers(*sampled)
        assert e.engine.load().preempted_total > 0
    assert alone == together == squeezed
    assert alone[0] != alone[2]


def test_each_token_of_a_seeded_answer_has_a_chance_of_its_own(prompts: list[list[int]]) -> None:
    """So hot that every token is equally likely: the answer then shows the chances themselves."""
    with RunningEngine(settings()) as e:
        one, other = e.answers(
            *(request(f"r{s}", prompts[0], TOKENS, temperature=1e6, seed=s, ignore_eos=True) for s in (1, 2))
        )
    assert len(set(one)) > TOKENS // 2
    assert max(one) - min(one) > 1024
    assert sum(a == b for a, b in zip(one, other, strict=True)) < TOKENS // 4


def test_without_a_seed_answers_differ(prompts: list[list[int]]) -> None:
    with RunningEngine(settings()) as e:
        hot = [request(f"r{i}", prompts[0], TOKENS, temperature=1.5, ignore_eos=True) for i in range(3)]
        assert len({tuple(a) for a in e.answers(*hot)}) == 3


# ---------------------------------------------------------------- how answers end


def test_a_stop_token_is_delivered_and_ends_the_answer(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    stop = undisturbed[1][7]
    wanted = undisturbed[1][: undisturbed[1].index(stop) + 1]
    with RunningEngine(settings()) as e:
        answer = e.answers(
            request("r", prompts[1], TOKENS, stop_token_ids=frozenset({stop}), ignore_eos=True)
        )
        assert answer == [wanted]
        assert e.out.finish("r") is Finish.STOP


def test_the_end_of_text_token_ends_unless_ignored(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    eos = undisturbed[0][5]
    with RunningEngine(settings()) as e:
        e.engine._info = e.info.__class__(
            **{**{f: getattr(e.info, f) for f in e.info.__slots__}, "eos_token_ids": (eos,)}
        )
        ends, ignores = e.answers(
            request("ends", prompts[0], TOKENS), request("ignores", prompts[0], TOKENS, ignore_eos=True)
        )
        assert ends == undisturbed[0][: undisturbed[0].index(eos) + 1]
        assert e.out.finish("ends") is Finish.STOP
        assert ignores == undisturbed[0]
        assert e.out.finish("ignores") is Finish.LENGTH


def test_the_context_ends_an_answer_that_asked_for_more(prompts: list[list[int]]) -> None:
    prompt = prompts[0]
    with RunningEngine(settings(context_length=len(prompt) + 5)) as e:
        assert len(e.answers(request("r", prompt, 100, ignore_eos=True))[0]) == 5
        assert e.out.finish("r") is Finish.LENGTH


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"prompt": ()}, "prompt is empty"),
        ({"prompt": (5,) * 64}, "no room in a context of 64"),
        ({"prompt": (5, 2048)}, "wanted 0 to 2047, found 2048"),
        ({"prompt": (-1, 5)}, "found -1"),
        ({"max_tokens": 0}, "max_tokens: wanted at least 1, found 0"),
        ({"max_tokens": -3}, "found -3"),
        ({"temperature": -0.5}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"prompt": (5,) * 40}, "the cache holds 48"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused_and_the_engine_goes_on(
    small: RunningEngine, bad: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {"request_id": "bad", "prompt": (5, 6), "max_tokens": 20, **bad}
    with pytest.raises(RequestInvalid, match=says):
        small.engine.submit(EngineRequest(**given))
    name = f"after {bad}"
    assert len(small.answers(request(name, [5, 6], 3, ignore_eos=True))[0]) == 3


@pytest.fixture(scope="module")
def small() -> Any:
    with RunningEngine(settings(blocks=3, context_length=64)) as e:
        yield e


# ---------------------------------------------------------------- when something goes wrong


class PlannedError(Exception):
    pass


def test_an_error_in_a_step_fails_exactly_the_requests_in_it(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    """Two places: the third request waits, and gets its whole answer afterwards."""

    def fails_at_the_tenth_token(rows: Sequence[Row]) -> None:
        if any(r.generation.request.request_id == "r0" and r.generation.made == 10 for r in rows):
            raise PlannedError("as planned")

    with RunningEngine(
        settings(max_batch_size=2), runner=lambda inner: Watched(inner, before=fails_at_the_tenth_token)
    ) as e:
        answers = e.answers(*requests_of(prompts[:3]))
        for name in ("r0", "r1"):
            end = e.out.ends[name]
            assert end.finish is Finish.FAILED
            assert "as planned" in end.error
        # What came before the error was right.
        assert answers[0] == undisturbed[0][:10]
        assert answers[1] == undisturbed[1][: len(answers[1])]
        assert (answers[2], e.out.finish("r2")) == (undisturbed[2], Finish.LENGTH)
        e.check_nothing_held()
        load = e.engine.load()
        assert (load.failed_steps_total, load.active, load.queued) == (1, 0, 0)
        assert not e.out.deaths


def test_what_a_failed_step_wrote_is_never_found_again(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    """The step fills the prompt's blocks with wrong numbers and then fails."""
    left = [1]

    def damages_and_fails(rows: Sequence[Row]) -> None:
        if left:
            left.pop()
            for layer in e.parts.runner._cache.layers:  # type: ignore[attr-defined]
                layer.fill_(3.0)
            raise PlannedError

    with RunningEngine(settings(), runner=lambda inner: Watched(inner, after=damages_and_fails)) as e:
        e.answers(request("failed", prompts[4], TOKENS))
        assert e.out.finish("failed") is Finish.FAILED
        assert e.answers(request("again", prompts[4], TOKENS, ignore_eos=True)) == [undisturbed[4]]
        assert e.out.first["again"].cached_tokens == 0


def test_damaged_numbers_fail_the_step_and_are_not_delivered(prompts: list[list[int]]) -> None:
    with RunningEngine(settings()) as e:
        e.parts.runner._model._weights.norm.fill_(float("nan"))  # type: ignore[attr-defined]
        e.answers(request("r", prompts[0], 5))
        assert e.out.finish("r") is Finish.FAILED
        assert "finite" in e.out.ends["r"].error
        assert e.out.tokens["r"] == []


def test_an_engine_whose_steps_all_fail_dies_and_answers_everyone(prompts: list[list[int]]) -> None:
    def fails(rows: Sequence[Row]) -> None:
        raise PlannedError

    with RunningEngine(settings(max_batch_size=1), runner=lambda inner: Watched(inner, before=fails)) as e:
        names = [f"r{i}" for i in range(MAX_FAILED_STEPS_IN_A_ROW + 3)]
        for name in names:
            try:
                e.engine.submit(request(name, prompts[0], 5))
            except EngineDead:
                names = names[: names.index(name)]
                break
        e.out.wait_for_ends(*names)
        e.out.wait(lambda: bool(e.out.deaths))
        assert {e.out.finish(name) for name in names} == {Finish.FAILED}
        assert f"{MAX_FAILED_STEPS_IN_A_ROW} steps in a row failed" in e.out.deaths[0]
        with pytest.raises(EngineDead, match="in a row"):
            e.engine.submit(request("late", prompts[0], 5))


def test_an_engine_whose_books_are_wrong_dies_and_answers_everyone(prompts: list[list[int]]) -> None:
    def loses_its_books(rows: Sequence[Row]) -> None:
        e.scheduler.running.clear()

    with RunningEngine(settings(), runner=lambda inner: Watched(inner, after=loses_its_books)) as e:
        e.engine.submit(request("r", prompts[0], 1))
        e.out.wait(lambda: bool(e.out.deaths))
        assert e.out.finish("r") is Finish.FAILED
        assert e.engine.load().active == 0


class Held:
    """Stops every step before it runs until it is let go, so that a test acts in the middle of a step."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, rows: Sequence[Row]) -> None:
        self.entered.release()
        assert self.go.acquire(timeout=60)

    def free(self) -> None:
        self.go.release(1_000_000)


def test_an_abort_in_a_step_takes_effect_before_the_next_one(
    prompts: list[list[int]], undisturbed: list[list[int]]
) -> None:
    held = Held()
    watched: list[Watched] = []

    def runner(inner: Any) -> Watched:
        watched.append(Watched(inner, before=held))
        return watched[0]

    with RunningEngine(settings(), runner=runner) as e:
        for r in requests_of(prompts[:2]):
            e.engine.submit(r)
        for _ in range(4):
            assert held.entered.acquire(timeout=60)
            held.go.release()
        assert held.entered.acquire(timeout=60)
        e.engine.abort("r0")
        e.engine.abort("unknown")
        steps = len(watched[0].steps)
        held.free()
        e.out.wait_for_ends("r0", "r1")
        assert all("r0" not in step for step in watched[0].steps[steps:])
        assert e.out.finish("r0") is Finish.CANCELLED
        assert e.out.tokens["r0"] == undisturbed[0][: len(e.out.tokens["r0"])]
        assert e.out.tokens["r1"] == undisturbed[1]
        e.engine.abort("r0")
        e.check_nothing_held()


def test_a_late_abort_does_not_hit_the_next_owner_of_the_id(prompts: list[list[int]]) -> None:
    """The abort is sent in the very step that ends the request; the id is used again before the next."""
    held = Held()
    with RunningEngine(settings(), runner=lambda inner: Watched(inner, after=held)) as e:
        e.engine.submit(request("r", prompts[0], 1))
        assert held.entered.acquire(timeout=60)
        e.engine.abort("r")
        # In the sink, that is after the end and before the next look into the inbox.
        deliver = e.out.deltas

        def and_again(batch: Sequence[TokenDelta]) -> None:
            deliver(batch)
            e.out.deltas = deliver  # type: ignore[method-assign]
            e.out.ends.pop("r")
            e.engine.submit(request("r", prompts[0], 3, ignore_eos=True))

        e.out.deltas = and_again  # type: ignore[method-assign]
        held.free()
        e.out.wait_for_ends("r")
        assert e.out.finish("r") is Finish.LENGTH
        assert not e.out.deaths


def test_an_abort_of_one_that_waits_never_runs_it(prompts: list[list[int]]) -> None:
    held = Held()
    with RunningEngine(settings(max_batch_size=1), runner=lambda inner: Watched(inner, before=held)) as e:
        for r in requests_of(prompts[:2]):
            e.engine.submit(r)
        assert held.entered.acquire(timeout=60)
        load = e.engine.load()
        assert (load.active, load.queued) == (1, 1)
        # While a step runs nothing waits for it: this very call does not.
        assert load.outstanding_decode_tokens == 2 * TOKENS
        assert load.outstanding_prefill_tokens == len(prompts[0]) + len(prompts[1])
        assert load.kv_used_tokens == 16 * -(-len(prompts[0]) // 16)
        e.engine.abort("r1")
        held.free()
        e.out.wait_for_ends("r0", "r1")
        assert e.out.finish("r1") is Finish.CANCELLED
        assert e.out.tokens["r1"] == []
        assert e.engine.load().prompt_tokens_total == len(prompts[0])


def test_the_queue_is_bounded_and_refusing_costs_nothing(prompts: list[list[int]]) -> None:
    held = Held()
    with RunningEngine(
        settings(max_batch_size=2, max_queued=1), runner=lambda inner: Watched(inner, before=held)
    ) as e:
        for i in range(3):
            e.engine.submit(request(f"r{i}", prompts[0], 2))
        with pytest.raises(EngineFull, match="at most 3 may"):
            e.engine.submit(request("r3", prompts[0], 2))
        with pytest.raises(RequestInvalid, match="runs already"):
            e.engine.submit(request("r0", prompts[0], 2))
        held.free()
        e.out.wait_for_ends("r0", "r1", "r2")
        assert e.answers(request("r3", prompts[0], 2, ignore_eos=True))[0]


def test_stop_ends_everyone_and_the_thread(prompts: list[list[int]]) -> None:
    held = Held()
    with RunningEngine(settings(max_batch_size=1), runner=lambda inner: Watched(inner, before=held)) as e:
        for r in requests_of(prompts[:3]):
            e.engine.submit(r)
        assert held.entered.acquire(timeout=60)
        held.free()
        e.engine.stop()
        e.engine.stop()
        assert {e.out.finish(f"r{i}") for i in range(3)} <= {Finish.CANCELLED, Finish.LENGTH}
        assert e.out.finish("r2") is Finish.CANCELLED
        assert e.engine._thread is not None
        assert not e.engine._thread.is_alive()
        assert not e.out.deaths
        with pytest.raises(EngineDead, match="stopped"):
            e.engine.submit(request("late", prompts[0], 2))


def test_a_sink_that_is_gone_ends_the_engine(prompts: list[list[int]]) -> None:
    with RunningEngine(settings()) as e:
        e.out.deltas = lambda batch: (_ for _ in ()).throw(BrokenPipeError("gone"))  # type: ignore[method-assign]
        e.engine.submit(request("r", prompts[0], 5))
        e.out.wait(lambda: bool(e.out.deaths))
        assert "BrokenPipeError" in e.out.deaths[0]


def test_an_engine_that_was_not_started_takes_nothing(prompts: list[list[int]]) -> None:
    engine = TorchEngine(settings())
    with pytest.raises(EngineDead, match="not started"):
        engine.submit(request("r", prompts[0], 5))
    assert engine.load().active == 0
    engine.stop()


# ---------------------------------------------------------------- what is counted


def test_step_sums_tell_prompts_from_decoded_tokens(prompts: list[list[int]]) -> None:
    n, made = len(prompts[1]), 10
    with RunningEngine(settings()) as e:
        e.answers(request("r", prompts[1], made, ignore_eos=True))
        sums = e.engine.load().steps
    assert sums.count == made
    assert (sums.prefill_tokens, sums.sequences) == (n, made - 1)
    # Each decoded row reads its context, its own token included.
    assert sums.kv_tokens == sum(range(n + 1, n + made))
    assert sums.prefill_prefill == n * n
    assert sums.prefill_sequences == sums.prefill_kv == 0
    assert sums.time_s > 0


# ---------------------------------------------------------------- what does not start


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"tensor_parallel": 8}, "EngineArgumentInvalid", r"parallelism\.tensor"),
        ({"attention_data_parallel": True}, "EngineArgumentInvalid", "attentionData"),
        ({"precision": "FP8"}, "EngineArgumentInvalid", "wanted Auto or BF16 for Torch, found FP8"),
        ({"kv_precision": "FP8"}, "EngineArgumentInvalid", r"kvCache\.precision"),
        ({"context_length": 4097}, "EngineArgumentInvalid", "at most 4096 tokens, found 4097"),
        ({"model_path": None}, "ModelSourceMissing", "folder"),
    ],
)
def test_settings_that_cannot_be_kept_do_not_start(changes: dict[str, Any], reason: str, says: str) -> None:
    plain = settings()
    wanted = EngineSettings(**{**{f: getattr(plain, f) for f in plain.__slots__}, **changes})
    engine = make_engine(wanted)
    with pytest.raises(StartFailed, match=says) as caught:
        engine.start(None)  # type: ignore[arg-type]
    assert caught.value.reason == reason
