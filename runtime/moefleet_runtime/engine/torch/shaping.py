"""What happens to logits before a token is chosen: bias, penalties, and tokens that may not come.

Rows that ask for nothing cost nothing; the others share a few scattered writes, whatever their number. In the order of
vLLM: bias, repetition penalty, frequency and presence penalty, then what is forbidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from moefleet_runtime.engine.torch.requests import Generation

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Shaping:
    """One row's. Empty sequences and None: nothing of that kind."""

    bias: tuple[tuple[int, float], ...] = ()
    # Each token of prompt or answer once (Keskar et al. 2019, arXiv 1909.05858, section 4.1; for negative logits as
    # transformers' RepetitionPenaltyLogitsProcessor).
    repeated: Sequence[int] = ()
    repetition_penalty: float = 1.0
    # Of the answer's tokens, what is subtracted: presence + frequency * count (OpenAI's API reference).
    subtracted: Sequence[tuple[int, float]] = ()
    banned: Sequence[int] = ()
    # One bool a token id, at least one of them True.
    allowed: NDArray[np.bool_] | None = None


def shaping_of(g: Generation) -> Shaping | None:
    """For the next token of the request."""
    r = g.request
    repeats, subtracts = r.repetition_penalty != 1, r.presence_penalty or r.frequency_penalty
    early = g.made < r.min_tokens
    if not (repeats or subtracts or early or r.logit_bias or g.matcher):
        return None
    allowed = None if g.matcher is None else g.matcher.allowed
    banned = tuple(g.stop_tokens) if early else ()
    if allowed is not None and banned:
        left = allowed.copy()
        left[list(banned)] = False
        # A text that is complete ends, however short: the guide allows nothing else.
        allowed, banned = left if left.any() else allowed, ()
    return Shaping(
        bias=r.logit_bias,
        repeated=tuple(g.prompt_tokens | g.counts.keys()) if repeats else (),
        repetition_penalty=r.repetition_penalty,
        subtracted=[(t, r.presence_penalty + r.frequency_penalty * n) for t, n in g.counts.items()]
        if subtracts
        else (),
        banned=banned,
        allowed=allowed,
    )


def shaped(logits: Tensor, wanted: Sequence[Shaping | None]) -> Tensor:
    """New logits, [rows, vocabulary]; what may not come is -inf. Each row keeps at least one finite number."""
    out = logits.clone()
    rows = [(i, s) for i, s in enumerate(wanted) if s is not None]

    def at(parts: Sequence[tuple[int, Sequence[int]]]) -> tuple[Tensor, Tensor]:
        row = np.repeat([i for i, _ in parts], [len(ids) for _, ids in parts])
        ids = np.fromiter(chain.from_iterable(ids for _, ids in parts), dtype=np.int64)
        return torch.from_numpy(row).to(out.device), torch.from_numpy(ids).to(out.device)

    def add(parts: Sequence[tuple[int, Sequence[tuple[int, float]]]], sign: float) -> None:
        if not any(pairs for _, pairs in parts):
            return
        places = at([(i, [token for token, _ in pairs]) for i, pairs in parts])
        values = [sign * value for _, pairs in parts for _, value in pairs]
        out.index_put_(places, torch.tensor(values, device=out.device, dtype=out.dtype), accumulate=True)

    add([(i, s.bias) for i, s in rows], 1.0)
    if repeating := [(i, s) for i, s in rows if s.repeated]:
        places = at([(i, s.repeated) for i, s in repeating])
        by = np.repeat([s.repetition_penalty for _, s in repeating], [len(s.repeated) for _, s in repeating])
        factor = torch.from_numpy(by).to(out.device, out.dtype)
        found = out[places]
        out[places] = torch.where(found > 0, found / factor, found * factor)
    add([(i, s.subtracted) for i, s in rows], -1.0)
    if banning := [(i, s.banned) for i, s in rows if s.banned]:
        out[at(banning)] = -torch.inf
    if guided := [(i, s.allowed) for i, s in rows if s.allowed is not None]:
        index = torch.tensor([i for i, _ in guided], device=out.device)
        mask = torch.from_numpy(np.stack([allowed for _, allowed in guided])).to(out.device)
        out[index] = out[index].masked_fill(~mask, -torch.inf)
    return out
