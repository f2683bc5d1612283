"""Iteration statistics, read by one thread: they are drained by each read, so a second reader would take half of them.

With attention data parallelism the numbers of a record are those of rank 0, but for the queue. They are scaled to the pod where
a sum over ranks is wanted; what must be exact (tokens delivered) is counted by the adapter itself.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from moefleet_runtime.engine.base import StepSumsAccumulator

# How long one read waits for a record, and how long to wait after one that failed.
READ_TIMEOUT_S: Final = 0.5
RETRY_S: Final = 1.0


@dataclass(slots=True)
class Statistics:
    """What the records said so far. Written by the reading thread, read from any."""

    ranks: int
    sums: StepSumsAccumulator = field(default_factory=StepSumsAccumulator)
    # None before the first record that has it.
    queued: int | None = None
    kv_used_tokens: int | None = None
    kv_max_tokens: int | None = None
    preempted_total: int = 0
    records_total: int = 0

    def absorb(self, record: Mapping[str, Any]) -> bool:
        """True when it is of a step that worked: evidence of progress. Unknown keys are of other versions; every part of a
        record is optional."""
        self.records_total += 1
        self.queued = _count(record, "numQueuedRequests", self.queued)
        cache = record.get("kvCacheStats") or {}
        block = cache.get("tokensPerBlock") or 0
        kv = 0
        if block and "usedNumBlocks" in cache:
            # Under tensor parallelism each rank holds the same blocks; otherwise each holds its own.
            kv = int(cache["usedNumBlocks"]) * int(block) * self.ranks
            self.kv_used_tokens = kv
            self.kv_max_tokens = int(cache.get("maxNumBlocks") or 0) * int(block) * self.ranks or None
        batch = record.get("inflightBatchingStats") or {}
        self.preempted_total += int(batch.get("numPausedRequests") or 0)
        prefill = int(batch.get("numCtxTokens") or 0)
        sequences = int(batch.get("numGenRequests") or 0)
        if not prefill and not sequences:
            return False
        self.sums.add(
            time_s=float(record.get("iterLatencyMS") or 0.0) / 1000,
            prefill=prefill * self.ranks,
            sequences=sequences * self.ranks,
            # What decoding rows read is not told; a step without them reads nothing, one with them most of what is held.
            kv=kv if sequences else 0,
        )
        return True


def _count(record: Mapping[str, Any], name: str, otherwise: int | None) -> int | None:
    value = record.get(name)
    return otherwise if value is None else int(value)


class Reader:
    """A thread that drains one of the engine's buffers (`get_stats` or `get_kv_cache_events`), which blocks in a remote call."""

    def __init__(
        self, name: str, read: Callable[[float], list[Any]], take: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._read = read
        self._take = take
        self._over = threading.Event()
        self.failed_total = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait: a read that never returns must not hold up an end."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                records = self._read(READ_TIMEOUT_S)
            except Exception:
                # Numbers are missing then, tokens are not: those who watch the engine for its life are others.
                self.failed_total += 1
                self._over.wait(RETRY_S)
                continue
            for record in records:
                try:
                    self._take(json.loads(record) if isinstance(record, str) else record)
                except (ValueError, TypeError, KeyError, AttributeError):
                    # Of another version: one record lost is better than all later ones.
                    self.failed_total += 1
