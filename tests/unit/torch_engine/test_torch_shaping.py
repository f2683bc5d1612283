"""Bias, penalties and min-p against their published formulas, written down here without tensors, and against transformers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from moefleet_runtime.engine.base import EngineRequest
from moefleet_runtime.engine.torch.requests import Generation
from moefleet_runtime.engine.torch.sampling import Choice, logprobs_of, sample
from moefleet_runtime.engine.torch.shaping import shaped, shaping_of
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

LOGITS = [2.0, -1.0, 0.5, 0.0, 3.0, -2.5]


@dataclass(frozen=True)
class Case:
    prompt: tuple[int, ...] = (0,)
    answer: tuple[int, ...] = ()
    wanted: dict[str, Any] = field(default_factory=dict)

    def generation(self) -> Generation:
        request = EngineRequest("r", self.prompt, 100, **self.wanted)
        return Generation(
            request=request,
            seed=0,
            stop_tokens=frozenset({4}),
            length_limit=1000,
            tokens=[*self.prompt, *self.answer],
            counts=Counter(self.answer),
            prompt_tokens=frozenset(self.prompt),
        )


def reference(case: Case, logits: Sequence[float]) -> list[float]:
    """Bias; CTRL's repetition penalty (arXiv 1909.05858, 4.1) over prompt and answer, multiplying below zero as
    transformers does; then OpenAI's mu[j] - c[j] * frequency - (c[j] > 0) * presence over the answer."""
    w, out = case.wanted, list(logits)
    for token, bias in w.get("logit_bias", ()):
        out[token] += bias
    penalty = w.get("repetition_penalty", 1.0)
    for token in {*case.prompt, *case.answer}:
        out[token] = out[token] / penalty if out[token] > 0 else out[token] * penalty
    for token in range(len(out)):
        count = case.answer.count(token)
        out[token] -= count * w.get("frequency_penalty", 0.0) + (count > 0) * w.get("presence_penalty", 0.0)
    if len(case.answer) < w.get("min_tokens", 0):
        out[4] = -math.inf
    return out


CASES = [
    Case(),
    Case(answer=(1, 1, 2), wanted={"presence_penalty": 0.5}),
    Case(answer=(1, 1, 2), wanted={"frequency_penalty": 0.5}),
    Case(answer=(1, 1, 2, 4), wanted={"frequency_penalty": -2.0, "presence_penalty": 1.5}),
    # A prompt's tokens are nothing to these two.
    Case(prompt=(4, 4, 0), answer=(), wanted={"frequency_penalty": 2.0, "presence_penalty": 2.0}),
    Case(prompt=(0, 1), answer=(4, 5), wanted={"repetition_penalty": 1.3}),
    Case(prompt=(0, 0, 1), answer=(0, 1, 1), wanted={"repetition_penalty": 0.7}),
    Case(wanted={"logit_bias": ((5, 100.0), (0, -100.0))}),
    # The penalty sees the logit that the bias has made positive.
    Case(prompt=(1,), wanted={"logit_bias": ((1, 5.0),), "repetition_penalty": 2.0}),
    Case(answer=(3,), wanted={"min_tokens": 2}),
    Case(answer=(3, 3), wanted={"min_tokens": 2}),
    Case(
        prompt=(2, 3),
        answer=(4, 4, 1),
        wanted={
            "logit_bias": ((4, -1.0), (3, 2.0)),
            "repetition_penalty": 1.2,
            "presence_penalty": 0.4,
            "frequency_penalty": 0.3,
            "min_tokens": 9,
        },
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: str(c.wanted))
def test_each_case_equals_the_published_formula(case: Case) -> None:
    logits = torch.tensor([LOGITS])
    ours = shaped(logits, [shaping_of(case.generation())])[0]
    assert ours.tolist() == pytest.approx(reference(case, LOGITS), abs=1e-6)
    assert logits[0].tolist() == pytest.approx(LOGITS), "the model's own logits are still wanted"


def test_a_batch_of_all_cases_equals_each_alone() -> None:
    spread = [[x * (i + 1) for x in LOGITS] for i in range(len(CASES))]
    ours = shaped(torch.tensor(spread), [shaping_of(c.generation()) for c in CASES])
    for row, case, logits in zip(ours, CASES, spread, strict=True):
        assert row.tolist() == pytest.approx(reference(case, logits), abs=1e-5)


def test_a_request_that_asks_for_nothing_costs_nothing() -> None:
    assert shaping_of(Case(answer=(1, 2)).generation()) is None


SIZE = 40
IDS = st.lists(st.integers(0, SIZE - 1), max_size=20).map(tuple)


PENALTIES = st.fixed_dictionaries(
    {
        "repetition_penalty": st.floats(0.1, 10),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
    }
)


@settings(max_examples=100, deadline=None)
@given(prompt=IDS.filter(bool), answer=IDS, wanted=PENALTIES, seed=st.integers(0, 10**6))
def test_any_penalties_equal_the_formula_and_transformers(
    prompt: tuple[int, ...], answer: tuple[int, ...], wanted: dict[str, float], seed: int
) -> None:
    logits = torch.randn(1, SIZE, generator=torch.Generator().manual_seed(seed)) * 3
    penalty = wanted["repetition_penalty"]
    case = Case(prompt, answer, wanted)
    ours = shaped(logits, [shaping_of(case.generation())])[0]
    assert ours.tolist() == pytest.approx(reference(case, logits[0].tolist()), abs=1e-4)
    alone = Case(prompt, answer, {"repetition_penalty": penalty})
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), logits)
    assert torch.allclose(shaped(logits, [shaping_of(alone.generation())]), theirs, atol=1e-5)


@pytest.mark.parametrize("min_p", [0.0, 0.01, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_min_p_keeps_what_transformers_keeps_and_nothing_of_the_rest_changes(
    min_p: float, temperature: float
) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 2
    grid = [(i + 0.5) / 4000 for i in range(4000)]
    choices = [Choice(temperature, 0, 1.0, chance, min_p) for chance in grid]
    found = Counter(sample(logits.expand(len(grid), -1), choices))
    theirs: torch.Tensor = logits / temperature
    if min_p > 0:
        theirs = MinPLogitsWarper(min_p)(torch.zeros(1, 1, dtype=torch.long), theirs)
    for token, p in enumerate(theirs.softmax(-1)[0].tolist()):
        assert found[token] / len(grid) == pytest.approx(p, abs=0.002)


def test_min_p_comes_before_top_k_and_top_p() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1: of 0.4, 0.3, 0.2 that min-p keeps, top-p 0.77 needs only the two (0.7/0.9)."""
    logits = torch.tensor([[math.log(p) for p in (0.4, 0.3, 0.2, 0.1)]])
    grid = [i / 1000 for i in range(1000)]

    def kept(**wanted: float) -> set[int]:
        given = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, **wanted}
        choices = [Choice(1.0, int(given["top_k"]), given["top_p"], c, given["min_p"]) for c in grid]
        return set(sample(logits.expand(len(grid), -1), choices))

    assert kept(min_p=0.45) == {0, 1, 2}
    assert kept(top_p=0.77) == {0, 1, 2}
    assert kept(min_p=0.45, top_p=0.77) == {0, 1}
    assert kept(min_p=0.45, top_k=1) == {0}


@settings(max_examples=50, deadline=None)
@given(
    wanted=st.lists(st.one_of(st.none(), st.integers(0, 60)), min_size=1, max_size=6),
    seed=st.integers(0, 10**6),
)
def test_log_probabilities_equal_log_softmax(wanted: list[int | None], seed: int) -> None:
    logits = torch.randn(len(wanted), 50, generator=torch.Generator().manual_seed(seed)) * 4
    tokens = [seed % 50] * len(wanted)
    found = logprobs_of(logits, tokens, wanted)
    assert sorted(found) == [i for i, n in enumerate(wanted) if n is not None]
    for i, one in found.items():
        row = [x.item() for x in logits[i].double()]
        norm = math.log(sum(math.exp(x) for x in row))
        assert one.logprob == pytest.approx(row[tokens[i]] - norm, abs=1e-4)
        best = sorted(((x - norm, t) for t, x in enumerate(row)), reverse=True)[: wanted[i]]
        assert [t for t, _ in one.top] == [t for _, t in best]
        assert [p for _, p in one.top] == pytest.approx([p for p, _ in best], abs=1e-4)
