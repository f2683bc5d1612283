"""A request and how far its answer has come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from moefleet_perf.prefixes import MARK_TOKENS, token_marks

from moefleet_runtime.engine.base import EngineRequest, Finish
from moefleet_runtime.engine.torch.blocks import chain_hash, root_hash
from moefleet_runtime.engine.torch.guides import Matcher


@dataclass(slots=True, eq=False)
class Generation:
    """Changed only by the thread that steps; others may read single fields at any time."""

    request: EngineRequest
    # Where chance comes from: the request's own seed or one drawn for it.
    seed: int
    # Tokens that end the answer (eos included unless ignored).
    stop_tokens: frozenset[int]
    # Tokens of prompt and answer together at which it ends.
    length_limit: int
    # Prompt and answer so far.
    tokens: list[int]
    # Of `tokens`, those whose latents are in the cache.
    computed: int = 0
    # Of the prompt, those found in the cache when the request first got its place.
    cached: int = 0
    blocks: list[int] = field(default_factory=list)
    # Hashes of the full blocks of `tokens`, from the front, as far as they were needed.
    hashes: list[bytes] = field(default_factory=list)
    admitted: bool = False
    published: int = 0
    # The first delta tells `cached`.
    told: bool = False
    # How many arrived before it: with the priority, its place in the queue, also after a preemption.
    arrival: int = 0
    # What its text must be. Knows the answer so far, so a preemption does not touch it.
    matcher: Matcher | None = None
    # How often each token is in the answer, and which the prompt has; for penalties.
    counts: Counter[int] = field(default_factory=Counter)
    prompt_tokens: frozenset[int] = frozenset()

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def rank(self) -> tuple[int, int]:
        """Lowest first: by priority, then by age."""
        return -self.request.priority, self.arrival

    @property
    def pending(self) -> int:
        """Tokens still to be computed before the next one can be made."""
        return len(self.tokens) - self.computed

    @property
    def decodes(self) -> bool:
        """One token made before is all that is missing (and not the last of a prompt)."""
        return self.pending == 1 and self.made > 0

    def hashes_of(self, full_blocks: int, block_tokens: int) -> list[bytes]:
        """The first `full_blocks` hashes of the chain; each is computed once."""
        while len(self.hashes) < full_blocks:
            at = len(self.hashes)
            parent = self.hashes[-1] if at else root_hash(self.request.cache_salt)
            self.hashes.append(chain_hash(parent, self.tokens[at * block_tokens : (at + 1) * block_tokens]))
        return self.hashes[:full_blocks]

    def marks_of(self, first_block: int, end_block: int, block_tokens: int) -> dict[int, tuple[int, ...]]:
        """Prefixes, as pickers name them, that end in the full blocks from `first_block` to before `end_block`, by block."""
        first, end = first_block * block_tokens, end_block * block_tokens
        at = [i for i, length in enumerate(MARK_TOKENS) if first < length <= end]
        if not at:
            return {}
        marks = token_marks(self.tokens[: MARK_TOKENS[at[-1]]], self.request.cache_salt)
        found: dict[int, tuple[int, ...]] = {}
        for i in at:
            block = (MARK_TOKENS[i] - 1) // block_tokens
            found[block] = (*found.get(block, ()), marks[i])
        return found

    def append(self, token: int) -> Finish | None:
        """One more token of the answer, and whether it ends there."""
        self.tokens.append(token)
        self.counts[token] += 1
        if token in self.stop_tokens and self.made >= self.request.min_tokens:
            return Finish.STOP
        if self.matcher is not None and self.matcher.take(token):
            return Finish.STOP
        if len(self.tokens) >= self.length_limit:
            return Finish.LENGTH
        return None


@dataclass(frozen=True, slots=True)
class Row:
    """What one step computes of one request: `count` tokens from `start`."""

    generation: Generation
    start: int
    count: int
    # A token made before, not a part of a prompt (or of a prompt computed again after a preemption).
    decodes: bool

    @property
    def samples(self) -> bool:
        """The step makes the next token: everything before it is then computed."""
        return self.start + self.count == len(self.generation.tokens)
