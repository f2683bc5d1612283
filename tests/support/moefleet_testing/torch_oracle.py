"""What transformers says of an answer of the Torch engine, and prompts in the words of the tiny checkpoint's novels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

TEXTS = (
    "Emma was",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune,",
    "The evening passed",
    "Mr. Darcy",
    "“My dear Mr. Bennet,” said his lady to him one day, “have you heard that Netherfield Park is let at last?”",
    "Captain Wentworth, in the most",
    "She had been",
    "There was no",
)
# Where the oracle's two best logits lie this near to each other, rounding may choose either.
NEAR_TIE = 1e-3


def oracle_logits(oracle: Any, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """[len(answer), vocabulary]: from which each token of the answer was chosen."""
    with torch.inference_mode():
        logits: torch.Tensor = oracle(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return logits.float()


def assert_greedy(oracle: Any, prompt: Sequence[int], answer: Sequence[int], processors: Any = None) -> None:
    """Each token is the oracle's best, or the answer leaves it first where its two best lie within NEAR_TIE."""
    logits = oracle_logits(oracle, prompt, answer)
    if processors is not None:
        sequence = torch.tensor([[*prompt, *answer]])
        rows = [processors(sequence[:, : len(prompt) + i], row[None].clone()) for i, row in enumerate(logits)]
        logits = torch.cat(rows)
    for at, token in enumerate(answer):
        best = logits[at].topk(2)
        if token != int(best.indices[0]):
            gap = float(best.values[0] - best.values[1])
            assert gap < NEAR_TIE, f"token {at}: ours {token}, the oracle's {best}"
            return
