"""Which tokens the next step computes: continuous batching under a token budget, with chunked prefill.

Rank decides: priority, then age. Running requests stand in its order, and so do those that wait; a place is given to the
first that waits, and taken from nobody for it. When blocks run out, the last of the running gives way and is computed again
later, so the first always gets on; among equal priorities none starves.
Rows that decode are served before prompts, which share what the budget leaves. No clock, no chance, no torch.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter

from moefleet_runtime.engine.torch.blocks import BlockPool
from moefleet_runtime.engine.torch.requests import Generation, Row

_RANK = attrgetter("rank")


class Scheduler:
    """Owned by the thread that steps; `running` and `waiting` may be measured from others."""

    def __init__(
        self, pool: BlockPool, *, max_batch_size: int, max_batch_tokens: int, reuse: bool = True
    ) -> None:
        self.pool = pool
        self.max_batch_tokens = max_batch_tokens
        # Each running request takes a token of every step at the end of its prompt; more than the budget would starve.
        self.max_running = min(max_batch_size, max_batch_tokens)
        self.running: list[Generation] = []
        self.waiting: list[Generation] = []
        self._arrivals = 0
        self.preempted_total = 0
        self.prompt_tokens_total = 0
        self.cached_tokens_total = 0
        self._reuse = reuse

    @property
    def has_work(self) -> bool:
        return bool(self.running or self.waiting)

    def add(self, generation: Generation) -> None:
        """The caller has checked that the pool can hold it alone."""
        generation.arrival = self._arrivals
        self._arrivals += 1
        insort(self.waiting, generation, key=_RANK)

    def late(self, now_s: float) -> list[Generation]:
        """Those whose deadline has passed; the caller removes them."""
        everyone = (*self.running, *self.waiting)
        return [g for g in everyone if g.request.deadline_s is not None and g.request.deadline_s <= now_s]

    def remove(self, generation: Generation) -> None:
        """Ended, aborted or failed: gives its blocks back."""
        if generation.blocks or generation in self.running:
            self.running.remove(generation)
        else:
            self.waiting.remove(generation)
        self._give_back(generation)

    def plan(self) -> list[Row]:
        """The rows of the next step, single tokens first. Empty only when nothing runs and nothing waits."""
        rows: list[Row] = []
        prefill_budget = self.max_batch_tokens - sum(g.decodes for g in self.running)
        i = 0
        while i < len(self.running):
            g = self.running[i]
            i += 1
            decodes = g.decodes
            count = 1 if decodes else min(g.pending, prefill_budget)
            if count == 0 or not self._grow(g, count):
                continue
            if not decodes:
                prefill_budget -= count
            rows.append(Row(g, g.computed, count, decodes))
        self._admit(rows, prefill_budget)
        return sorted(rows, key=lambda row: row.count > 1)

    def advance(self, rows: Sequence[Row]) -> None:
        """After the pass that computed them, and before new tokens are appended: full blocks become known."""
        for row in rows:
            g = row.generation
            g.computed = row.start + row.count
            if self._reuse:
                full = g.computed // self.pool.block_tokens
                if full > g.published:
                    hashes = g.hashes_of(full, self.pool.block_tokens)
                    marks = g.marks_of(g.published, full, self.pool.block_tokens)
                    for at in range(g.published, full):
                        self.pool.publish(g.blocks[at], hashes[at], marks.get(at, ()))
                    g.published = full

    def _admit(self, rows: list[Row], prefill_budget: int) -> None:
        while self.waiting and prefill_budget > 0 and len(self.running) < self.max_running:
            g = self.waiting[0]
            found = self._cached_blocks(g)
            if self.running and not self._fits(g, found):
                break
            del self.waiting[0]
            insort(self.running, g, key=_RANK)
            self._attach(g, found)
            count = min(g.pending, prefill_budget)
            if not self._grow(g, count):
                # Alone it always fits, and `_fits` counted its blocks: only a broken promise comes here.
                raise RuntimeError(
                    f"request {g.request.request_id}: admitted without room for {count} tokens"
                )
            prefill_budget -= count
            rows.append(Row(g, g.computed, count, decodes=False))

    def _cached_blocks(self, g: Generation) -> list[int]:
        """One token is always left to compute: a step must have something to make the next token from."""
        if not self._reuse:
            return []
        full = (len(g.tokens) - 1) // self.pool.block_tokens
        return self.pool.find(g.hashes_of(full, self.pool.block_tokens))

    def _fits(self, g: Generation, found: Sequence[int]) -> bool:
        """All of its tokens so far, beside what the running ones still need and one block of growth for each: what was
        just sent away never comes back for the same blocks."""
        pool = self.pool
        needed = pool.blocks_for(len(g.tokens)) - len(found)
        revived = sum(pool.is_free(block) for block in found)
        promised = sum(max(pool.blocks_for(len(r.tokens)) - len(r.blocks), 0) + 1 for r in self.running)
        return needed + revived + promised <= pool.free

    def _attach(self, g: Generation, found: Sequence[int]) -> None:
        for block in found:
            self.pool.share(block)
        g.blocks = list(found)
        g.computed = len(found) * self.pool.block_tokens
        g.published = len(found)
        if not g.admitted:
            g.admitted = True
            # An answer that began elsewhere is context: only the prompt's share is told.
            g.cached = min(g.computed, len(g.request.prompt))
            self.cached_tokens_total += g.cached
            self.prompt_tokens_total += len(g.request.prompt)

    def _grow(self, g: Generation, count: int) -> bool:
        """Blocks for `count` more tokens; False when the request itself was the last and gave way."""
        wanted = self.pool.blocks_for(g.computed + count)
        while len(g.blocks) < wanted:
            if self.pool.free:
                g.blocks.append(self.pool.take())
                continue
            last = self.running[-1]
            self._preempt(last)
            if last is g:
                return False
        return True

    def _preempt(self, g: Generation) -> None:
        self.running.remove(g)
        self._give_back(g)
        insort(self.waiting, g, key=_RANK)
        self.preempted_total += 1

    def _give_back(self, g: Generation) -> None:
        self.pool.release(g.blocks)
        g.blocks = []
        g.computed = g.published = 0
