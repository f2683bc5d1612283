"""The loop that iterations run in: admission by reservation, chunked prefill, one token a sequence, statistics.

GUARANTEED_NO_EVICT (notes 2): a request is admitted when its prompt and its max_tokens fit beside those admitted before, so that
a huge max_tokens lets requests run one by one (#9412).
"""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ._behaviour import Behaviour
from ._generated import FACTS

Send = Callable[[Any], None]


@dataclass
class Response:
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    stop_reason: int | str | None = None
    done: bool = False
    error: str = ""
    cached: int = 0


@dataclass
class Work:
    number: int
    prompt: list[int]
    # By reference: who gives one object to two requests gives both what the second wanted (snapshot, SamplingParams rules).
    params: Any
    salt: str
    send: Send
    computed: int = 0
    cached: int = 0
    made: list[int] = field(default_factory=list)
    unsent: list[int] = field(default_factory=list)

    @property
    def reserved(self) -> int:
        return len(self.prompt) + self.params.max_tokens


def token_of(prompt: list[int], k: int, vocabulary: int, avoid: int) -> int:
    """The k-th token of the answer to a prompt: arithmetic that depends on all of it."""
    token = (sum(prompt) * 7919 + len(prompt) * 31 + k * 104729) % vocabulary
    return token if token != avoid else (token + 1) % vocabulary


class Executor:
    def __init__(self, args: Any, vocabulary: int, how: Behaviour, kill_worker: Callable[[], None]) -> None:
        self.args, self.how, self.vocabulary = args, how, vocabulary
        self._kill_worker = kill_worker
        self._change = threading.Condition()
        self._waiting: deque[Work] = deque()
        self._active: list[Work] = []
        self._cancelled: set[int] = set()
        self._stopped = False
        self._blocks: set[tuple[str, tuple[int, ...]]] = set()
        self._tokens_total = 0
        self._worked = 0
        self._iteration = 0
        self.fatal: Exception | None = None
        # Newest kept, drained by each read (notes 5).
        self.statistics: deque[dict[str, Any]] = deque(maxlen=args.max_stats_len)
        self._event_id = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=args.kv_cache_config.event_buffer_max_size)
        self._event({"type": "created", "num_blocks_per_cache_level": [self._max_blocks, 0]})
        self.news = threading.Condition()
        threading.Thread(target=self._run, name="fake-executor", daemon=True).start()

    @property
    def _max_blocks(self) -> int:
        return int(self.how.kv_tokens // self.args.kv_cache_config.tokens_per_block)

    def submit(self, work: Work) -> None:
        with self._change:
            self._waiting.append(work)
            self._change.notify()

    def cancel(self, number: int) -> None:
        with self._change:
            if not self.how.loses_aborts:
                self._cancelled.add(number)
            self._change.notify()

    def stop(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify()

    def _run(self) -> None:
        while True:
            with self._change:
                # An idle engine makes no iterations, hence no records (notes 5).
                self._change.wait_for(lambda: self._stopped or self._waiting or self._active)
                if self._stopped:
                    return
                # Once per iteration (notes 3): dropped if waiting, finished with a last response if active.
                self._cancel()
                self._admit()
                batch = list(self._active)
            if not batch:
                # The latency of whatever else an iteration does; also keeps a full cache from spinning.
                time.sleep(self.how.step_s)
                continue
            began = time.perf_counter()
            time.sleep(self.how.step_s)
            if self._misbehaves():
                return
            self._worked += 1
            failing = self._worked in self.how.forward_errors
            sticky = bool(self.how.sticky_from) and self._worked >= self.how.sticky_from
            if failing or sticky:
                said = (
                    "CUDA error: an illegal memory access was encountered"
                    if sticky
                    else self.how.forward_error
                )
                self._fail(batch, said)
                continue
            context = self._step(batch)
            self._record(batch, context, (time.perf_counter() - began) * 1000)

    def _misbehaves(self) -> bool:
        how, made = self.how, self._tokens_total
        if how.worker_killed_after and made >= how.worker_killed_after:
            self._kill_worker()
            return True
        if how.worker_raises_after and made >= how.worker_raises_after:
            self.fatal = OSError("rank 3 exited: NVLink error")
            for work in [*self._active, *self._waiting]:
                work.send(self.fatal)
            return True
        if how.executor_dies_after and made >= how.executor_dies_after:
            return True
        while how.hangs_after and made >= how.hangs_after:
            time.sleep(3600)
        return False

    def _cancel(self) -> None:
        for work in [*self._active, *self._waiting]:
            if work.number in self._cancelled:
                (self._active if work in self._active else self._waiting).remove(work)
                # A cancelled request ends without a finish reason (notes 1.3).
                work.send(Response(tokens=work.unsent, done=True))
        self._cancelled.clear()

    def _admit(self) -> None:
        while self._waiting and len(self._active) < self.args.max_batch_size:
            held = sum(work.reserved for work in self._active)
            if self._active and held + self._waiting[0].reserved > self.how.kv_tokens:
                return
            work = self._waiting.popleft()
            work.cached = work.computed = self._reused(work)
            self._active.append(work)

    def _reused(self, work: Work) -> int:
        """Whole blocks that are there already, but never the whole prompt: its last token has to be computed."""
        if not self.args.kv_cache_config.enable_block_reuse:
            return 0
        size, found = self.args.kv_cache_config.tokens_per_block, 0
        while (
            found + size < len(work.prompt)
            and (work.salt, tuple(work.prompt[: found + size])) in self._blocks
        ):
            found += size
        return int(found)

    def _step(self, batch: list[Work]) -> tuple[int, int, int]:
        """Requests and tokens of prefill, and sequences that decoded, of one iteration."""
        budget = self.args.max_num_tokens
        context, prefilled, decoded = 0, 0, 0
        for work in batch:
            left = len(work.prompt) - work.computed
            if left > 0:
                chunk = min(left, budget)
                if not chunk:
                    continue
                budget -= chunk
                context, prefilled = context + 1, prefilled + chunk
                work.computed += chunk
                if chunk < left:
                    continue
                self._store(work)
            else:
                decoded += 1
            self._make_token(work)
        return context, prefilled, decoded

    def _make_token(self, work: Work) -> None:
        params, k = work.params, len(work.made)
        own_end = self.how.answer_tokens and k + 1 >= self.how.answer_tokens and not params.ignore_eos
        token = params.end_id if own_end else token_of(work.prompt, k, self.vocabulary, params.end_id)
        self._tokens_total += 1
        if work.number in self.how.empty_answers:
            self._end(work, Response(finish="stop", done=True))
            return
        if work.number in self.how.unexplained_ends and k == 2:
            self._end(work, Response(tokens=work.unsent, done=True))
            return
        work.made.append(token)
        work.unsent.append(token)
        if token == params.end_id and not params.ignore_eos:
            if not self.how.keeps_end_id:
                work.unsent.pop()
            self._end(work, Response(tokens=work.unsent, finish="stop", done=True))
        elif token in (params.stop_token_ids or ()):
            if not params.include_stop_str_in_output:
                work.unsent.pop()
            self._end(work, Response(tokens=work.unsent, finish="stop", stop_reason=token, done=True))
        elif (
            len(work.made) >= params.max_tokens or len(work.prompt) + len(work.made) >= self.args.max_seq_len
        ):
            self._end(work, Response(tokens=work.unsent, finish="length", done=True))
        elif k == 0 or len(work.made) % self.args.stream_interval == 0:
            work.send(Response(tokens=work.unsent, cached=work.cached))
            work.unsent = []

    def _end(self, work: Work, response: Response) -> None:
        response.cached = work.cached
        with self._change:
            self._active.remove(work)
        work.send(response)

    def _fail(self, batch: list[Work], said: str) -> None:
        for work in batch:
            self._end(work, Response(error=said, done=True))

    def _store(self, work: Work) -> None:
        size, parent = self.args.kv_cache_config.tokens_per_block, None
        for end in range(size, len(work.prompt) + 1, size):
            key = (work.salt, tuple(work.prompt[:end]))
            block = {
                "type": "stored_block",
                "block_hash": hash(key),
                "tokens": [
                    {"type": "unique_token", "token_id": token, "token_extra_id": 0}
                    for token in work.prompt[end - size : end]
                ],
                "cache_level": 0,
                "priority": 35,
            }
            if key not in self._blocks:
                self._blocks.add(key)
                self._event({"type": "stored", "parent_hash": parent, "blocks": [block]})
            parent = block["block_hash"]

    def _event(self, data: dict[str, Any]) -> None:
        if self.args.kv_cache_config.event_buffer_max_size and self.args.kv_cache_config.enable_block_reuse:
            self.events.append(
                {"event_id": self._event_id, "data": data, "window_size": self.args.max_seq_len}
            )
            self._event_id += 1

    def _record(self, batch: list[Work], step: tuple[int, int, int], latency_ms: float) -> None:
        self._iteration += 1
        if not self.args.enable_iter_perf_stats:
            return
        context, prefilled, decoded = step
        block = self.args.kv_cache_config.tokens_per_block
        used = sum(-(-(work.computed + len(work.made)) // block) for work in batch)
        record = zeros(FACTS["iteration_stats"]["keys"])
        for part in ("specDecodingStats",):
            # Optional, and absent without speculation (snapshot: optional_keys).
            del record[part]
        record |= {"timestamp": "01-01-2026 00:00:00.0", "iter": self._iteration, "iterLatencyMS": latency_ms}
        record |= {"numActiveRequests": len(batch), "numQueuedRequests": len(self._waiting)}
        record["kvCacheStats"] |= {
            **{"maxNumBlocks": self._max_blocks, "usedNumBlocks": used, "tokensPerBlock": block},
            "freeNumBlocks": self._max_blocks - used,
        }
        record["inflightBatchingStats"] |= {
            **{"numScheduledRequests": context + decoded, "numContextRequests": context},
            **{"numGenRequests": decoded, "numCtxTokens": prefilled},
        }
        if self.how.extra_keys:
            record |= {"attentionDpRank": 0, "scheduledTokens": {"gen": 5}}
            del record["staticBatchingStats"]
        with self.news:
            self.statistics.append(record)
            self.news.notify_all()


def zeros(keys: dict[str, Any]) -> dict[str, Any]:
    """A record with exactly the keys of the snapshot."""
    empty: dict[str, Any] = {"int": 0, "float": 0.0}
    return {
        name: zeros(kind) if isinstance(kind, dict) else copy.copy(empty.get(str(kind), ""))
        for name, kind in keys.items()
        if name != "nullable"
    }
