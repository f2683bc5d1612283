"""What a client may ask of an answer, at the running engine with the tiny checkpoint, beside transformers where it can tell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from moefleet_runtime.engine.base import Finish, Guide, TokenDelta, TokenLogprob
from moefleet_runtime.engine.torch.requests import Row
from moefleet_runtime.tokenizer import load_tokenizer
from moefleet_testing.torch_engine import CHECKPOINT, Collected, RunningEngine, Watched, request, settings
from moefleet_testing.torch_oracle import TEXTS, assert_greedy, oracle_logits
from transformers import (
    DeepseekV2ForCausalLM,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

TOKENS = 32
EOS = 1


@pytest.fixture(scope="module")
def oracle() -> Any:
    return DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(CHECKPOINT, 2048)


@pytest.fixture(scope="module")
def prompts(tokenizer: Any) -> list[list[int]]:
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.fixture(scope="module")
def engine() -> Any:
    with RunningEngine(settings()) as e:
        yield e
        e.check_nothing_held()


# ---------------------------------------------------------------- greedy answers are transformers', whatever happens


@pytest.mark.parametrize("situation", ["alone", "batch", "cached", "preempted", "beside an abort"])
def test_greedy_answers_are_those_of_transformers(
    oracle: Any, prompts: list[list[int]], situation: str
) -> None:
    plain = [request(f"r{i}", p, TOKENS, ignore_eos=True) for i, p in enumerate(prompts)]
    with RunningEngine(settings(blocks=10 if situation == "preempted" else 1024)) as e:
        match situation:
            case "alone":
                answers = [e.answers(r)[0] for r in plain]
            case "cached":
                e.answers(*(request(f"first {i}", p, 1) for i, p in enumerate(prompts)))
                answers = e.answers(*plain)
                assert any(e.out.first[r.request_id].cached_tokens for r in plain)
            case "beside an abort":
                for i, p in enumerate(prompts):
                    e.engine.submit(request(f"gone {i}", p, 2000, ignore_eos=True))
                e.out.wait(
                    lambda: all(len(e.out.tokens.get(f"gone {i}", ())) > 3 for i in range(len(prompts)))
                )
                for r in plain:
                    e.engine.submit(r)
                for i in range(len(prompts)):
                    e.engine.abort(f"gone {i}")
                e.out.wait_for_ends(
                    *(r.request_id for r in plain), *(f"gone {i}" for i in range(len(prompts)))
                )
                answers = [e.out.tokens[r.request_id] for r in plain]
            case _:
                answers = e.answers(*plain)
        assert (e.engine.load().preempted_total > 0) == (situation == "preempted")
        e.check_nothing_held()
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == TOKENS
        assert_greedy(oracle, prompt, answer)


# ---------------------------------------------------------------- what shapes an answer


def test_a_repetition_penalty_gives_the_greedy_answer_of_transformers(
    engine: RunningEngine, oracle: Any, prompts: list[list[int]]
) -> None:
    answers = engine.answers(
        *(
            request(f"rep{i}", p, TOKENS, ignore_eos=True, repetition_penalty=1.4)
            for i, p in enumerate(prompts)
        )
    )
    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)])
    for prompt, answer in zip(prompts, answers, strict=True):
        assert_greedy(oracle, prompt, answer, processors)


def test_min_tokens_gives_the_greedy_answer_of_transformers(
    engine: RunningEngine, oracle: Any, prompts: list[list[int]]
) -> None:
    """Every token of the plain answer is a stop token: without the minimum each answer would end at once."""
    prompt, least = prompts[0], 12
    (plain,) = engine.answers(request("plain", prompt, TOKENS, ignore_eos=True))
    (short,) = engine.answers(request("short", prompt, TOKENS, stop_token_ids=frozenset(plain)))
    assert len(short) == 1
    (answer,) = engine.answers(
        request("least", prompt, TOKENS, stop_token_ids=frozenset(plain), min_tokens=least)
    )
    assert len(answer) > least
    assert not {EOS, *plain} & set(answer[:least])
    ends = MinNewTokensLengthLogitsProcessor(len(prompt), least, [EOS, *plain])
    assert_greedy(oracle, prompt, answer, LogitsProcessorList([ends]))


def test_penalties_and_bias_change_what_comes_as_they_say(
    engine: RunningEngine, prompts: list[list[int]]
) -> None:
    prompt = prompts[0]
    plain, frequent, spread, banned, forced = engine.answers(
        *(
            request(name, prompt, TOKENS, ignore_eos=True, **wanted)
            for name, wanted in {
                "pl": {},
                "fr": {"frequency_penalty": -2.0, "presence_penalty": -2.0},
                "sp": {"frequency_penalty": 2.0, "presence_penalty": 2.0},
                "ba": {"logit_bias": ((5, -100.0), (300, -100.0))},
                "fo": {"logit_bias": ((7, 100.0),)},
            }.items()
        )
    )
    assert len(set(frequent)) < len(set(plain)) < len(set(spread)) + 1
    assert not {5, 300} & set(banned)
    assert forced == [7] * TOKENS


def test_shaped_and_seeded_answers_are_the_same_alone_together_and_after_a_preemption(
    prompts: list[list[int]],
) -> None:
    wanted: list[dict[str, Any]] = [
        {"temperature": 1.0, "min_p": 0.1, "seed": 3},
        {"temperature": 1.2, "repetition_penalty": 1.3, "seed": 2**64 - 1},
        {"temperature": 0.9, "frequency_penalty": 1.0, "presence_penalty": 0.5, "seed": 0},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "logit_bias": ((9, 3.0),), "seed": 5},
        {"frequency_penalty": 0.7},
        {"temperature": 1.0, "seed": 8, "guide": Guide("regex", "[A-Za-z ,.]{60,400}")},
    ]
    asked = [
        request(f"r{i}", prompts[i], TOKENS, ignore_eos=True, logprobs=2, **w) for i, w in enumerate(wanted)
    ]
    with RunningEngine(settings(kv_reuse=False)) as e:
        alone = [e.answers(r)[0] for r in asked]
    with RunningEngine(settings()) as e:
        together = e.answers(*asked, *(request(f"g{i}", p, TOKENS) for i, p in enumerate(prompts[:2])))
    with RunningEngine(settings(blocks=9)) as e:
        squeezed = e.answers(*asked)
        assert e.engine.load().preempted_total > 0
        e.check_nothing_held()
    assert alone == together[: len(asked)] == squeezed


# ---------------------------------------------------------------- log-probabilities


class WithLogprobs(Collected):
    def __init__(self) -> None:
        super().__init__()
        self.logprobs: dict[str, list[TokenLogprob]] = {}

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        for delta in batch:
            self.logprobs.setdefault(delta.request_id, []).extend(delta.logprobs)
        super().deltas(batch)


def test_log_probabilities_are_log_softmax_of_transformers_logits(
    oracle: Any, prompts: list[list[int]]
) -> None:
    """Before penalties and temperature: those change what is chosen, not how likely the model found it."""
    wanted: list[dict[str, Any]] = [
        {"logprobs": 5},
        {"logprobs": 0},
        {"logprobs": 20, "temperature": 1.0, "seed": 4, "min_p": 0.05},
        {"logprobs": 3, "repetition_penalty": 1.5, "logit_bias": ((7, 4.0),)},
        {},
    ]
    with RunningEngine(settings()) as e:
        e.engine._sink = e.out = WithLogprobs()
        answers = e.answers(
            *(request(f"r{i}", prompts[i], TOKENS, ignore_eos=True, **w) for i, w in enumerate(wanted))
        )
        found = [e.out.logprobs[f"r{i}"] for i in range(len(wanted))]
    assert found.pop() == []
    for i, reported in enumerate(found):
        theirs = oracle_logits(oracle, prompts[i], answers[i]).log_softmax(-1)
        assert len(reported) == TOKENS
        for row, token, one in zip(theirs, answers[i], reported, strict=True):
            assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert [p for _, p in one.top] == pytest.approx(
                row.topk(wanted[i]["logprobs"]).values.tolist(), abs=1e-4
            )
            assert [float(row[t]) for t, _ in one.top] == pytest.approx([p for _, p in one.top], abs=1e-4)


# ---------------------------------------------------------------- who comes first, and who too late


def test_the_higher_priority_is_served_first_and_equals_by_age(prompts: list[list[int]]) -> None:
    order: list[str] = []

    def note(rows: Sequence[Row]) -> None:
        name = rows[0].generation.request.request_id
        if not order or order[-1] != name:
            order.append(name)
        if name == "running" and len(e.scheduler.waiting) + len(e.engine._inbox) < 5:
            # The first step waits until all the others wait.
            for i, priority in enumerate((0, -1, 5, 0, 5)):
                e.engine.submit(
                    request(f"r{i}:{priority}", prompts[i], 2, ignore_eos=True, priority=priority)
                )

    with RunningEngine(settings(max_batch_size=1), runner=lambda inner: Watched(inner, before=note)) as e:
        e.engine.submit(request("running", prompts[0], 1))
        e.out.wait(lambda: len(e.out.ends) == 6)
    assert order == ["running", "r2:5", "r4:5", "r0:0", "r3:0", "r1:-1"]


def test_one_that_waits_past_its_deadline_is_told_so_and_never_computed(prompts: list[list[int]]) -> None:
    """The engine is held until the deadline has passed: no timing decides."""
    late_at_s = time.monotonic() + 0.2

    def until_late(rows: Sequence[Row]) -> None:
        time.sleep(max(0.0, late_at_s - time.monotonic()))

    with RunningEngine(
        settings(max_batch_size=1), runner=lambda inner: Watched(inner, before=until_late)
    ) as e:
        e.engine.submit(request("running", prompts[0], 3, ignore_eos=True))
        e.engine.submit(request("late", prompts[1], 3, deadline_s=late_at_s))
        e.engine.submit(request("patient", prompts[2], 3, ignore_eos=True, deadline_s=late_at_s + 3600))
        e.out.wait_for_ends("running", "late", "patient")
        assert {n: e.out.finish(n) for n in e.out.ends} == {
            "running": Finish.LENGTH,
            "late": Finish.LATE,
            "patient": Finish.LENGTH,
        }
        assert e.out.tokens["late"] == []
        assert e.engine.load().prompt_tokens_total == len(prompts[0]) + len(prompts[2])
        e.check_nothing_held()


def test_one_that_runs_past_its_deadline_ends_after_the_step_and_gives_its_blocks_back(
    prompts: list[list[int]],
) -> None:
    def waits(rows: Sequence[Row]) -> None:
        g = rows[0].generation
        if g.made == 5:
            assert g.request.deadline_s is not None
            time.sleep(max(0.0, g.request.deadline_s - time.monotonic()))

    with RunningEngine(settings(), runner=lambda inner: Watched(inner, before=waits)) as e:
        e.engine.submit(request("r", prompts[0], 2000, ignore_eos=True, deadline_s=time.monotonic() + 5))
        e.out.wait_for_ends("r")
        assert (e.out.finish("r"), len(e.out.tokens["r"])) == (Finish.LATE, 6)
        e.check_nothing_held()
