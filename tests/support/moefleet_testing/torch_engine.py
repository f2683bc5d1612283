"""Builders for tests of the Torch engine: settings, requests, a sink that collects, runners that fail or wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from moefleet_runtime.engine.arguments import TorchArguments
from moefleet_runtime.engine.base import EngineRequest, EngineSettings, Finish, TokenDelta
from moefleet_runtime.engine.torch.blocks import BlockPool
from moefleet_runtime.engine.torch.cache import LatentCache, make_cache
from moefleet_runtime.engine.torch.engine import TorchEngine
from moefleet_runtime.engine.torch.model import Model
from moefleet_runtime.engine.torch.packing import pack
from moefleet_runtime.engine.torch.requests import Generation, Row
from moefleet_runtime.engine.torch.runner import Made, Runner
from moefleet_runtime.engine.torch.starting import start

CHECKPOINT = Path(__file__).parents[1] / "models" / "tiny-deepseek-v2"

# Long enough for a machine that is busy with something else; a test that reaches it has failed.
PATIENCE_S = 60.0


def settings(
    path: Path = CHECKPOINT, *, blocks: int = 1024, block_tokens: int = 16, **changes: Any
) -> EngineSettings:
    arguments = TorchArguments(blocks=blocks, block_tokens=block_tokens, threads=1)
    given: dict[str, Any] = {"context_length": 4096, **changes}
    return EngineSettings(model_name="tiny", model_path=path, arguments=arguments, **given)


def request(request_id: str, prompt: Sequence[int], max_tokens: int = 16, **changes: Any) -> EngineRequest:
    return EngineRequest(request_id, tuple(prompt), max_tokens, **changes)


def generation(
    name: str, tokens: Sequence[int], *, max_tokens: int = 16, salt: str = "", **changes: Any
) -> Generation:
    return Generation(
        request=request(name, tokens, max_tokens, cache_salt=salt, **changes),
        seed=0,
        stop_tokens=frozenset(),
        length_limit=len(tokens) + max_tokens,
        tokens=list(tokens),
    )


class Collected:
    """A sink: what came for each request, and a way to wait for it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, TokenDelta] = {}
        self.first: dict[str, TokenDelta] = {}
        self.deaths: list[str] = []

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        with self._changed:
            for delta in batch:
                assert delta.request_id not in self.ends, f"{delta} came after the end"
                self.first.setdefault(delta.request_id, delta)
                self.tokens.setdefault(delta.request_id, []).extend(delta.tokens)
                if delta.finish is not None:
                    self.ends[delta.request_id] = delta
            self._changed.notify_all()

    def died(self, reason: str) -> None:
        with self._changed:
            self.deaths.append(reason)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), (
                f"waited {PATIENCE_S:g} s; ended: {sorted(self.ends)}, deaths: {self.deaths}"
            )

    def wait_for_ends(self, *names: str) -> None:
        self.wait(lambda: all(name in self.ends for name in names))

    def finish(self, name: str) -> Finish | None:
        return self.ends[name].finish


class RunningEngine:
    """A started engine, its parts and what came out of it. Stops, and checks the books, at the end of `with`."""

    def __init__(
        self, wanted: EngineSettings, *, runner: Callable[[Runner], Runner] = lambda inner: inner
    ) -> None:
        self.parts = start(wanted)
        self.scheduler = self.parts.scheduler
        self.out = Collected()
        self.engine = TorchEngine(wanted)
        changed = replace(self.parts, runner=runner(self.parts.runner))
        self.info = self.engine.start_with(changed, self.out)

    def __enter__(self) -> RunningEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()

    def answers(self, *requests: EngineRequest) -> list[list[int]]:
        for r in requests:
            self.engine.submit(r)
        self.out.wait_for_ends(*(r.request_id for r in requests))
        return [self.out.tokens[r.request_id] for r in requests]

    def check_nothing_held(self) -> None:
        """After the last request has ended: every block is back."""
        assert self.scheduler.pool.used == 0
        self.scheduler.pool.check_integrity([])


class Watched:
    """A runner that remembers who was in each step, and asks `before` and `after` what to do."""

    def __init__(
        self,
        inner: Runner,
        *,
        before: Callable[[Sequence[Row]], None] = lambda rows: None,
        after: Callable[[Sequence[Row]], None] = lambda rows: None,
    ) -> None:
        self._inner, self._before, self._after = inner, before, after
        self.steps: list[list[str]] = []

    def run(self, rows: Sequence[Row]) -> list[Made]:
        self.steps.append([row.generation.request.request_id for row in rows])
        self._before(rows)
        made = self._inner.run(rows)
        self._after(rows)
        return made


def load_model(path: Path, *, positions: int = 512, dtype: torch.dtype = torch.float32) -> Model:
    from moefleet_runtime.engine.torch.config import read_model_config

    device = torch.device("cpu")
    return Model.load(path, read_model_config(path), positions=positions, device=device, dtype=dtype)


class Forced:
    """Logits of a given text, computed in pieces of given lengths over a cache of its own."""

    def __init__(self, model: Model, *, block_tokens: int = 16, blocks: int = 64) -> None:
        self._model = model
        self._pool = BlockPool(blocks=blocks, block_tokens=block_tokens)
        weight = model._weights.embedding
        self._cache: LatentCache = make_cache(
            model.config, blocks=blocks, block_tokens=block_tokens, device=weight.device, dtype=weight.dtype
        )

    def logits(self, texts: Sequence[Sequence[int]], pieces: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """One tensor a text, [len(pieces), vocabulary]: after each of its pieces. All texts share each pass."""
        rows_of = [generation(str(i), text) for i, text in enumerate(texts)]
        whole = [g.tokens for g in rows_of]
        out: list[list[torch.Tensor]] = [[] for _ in texts]
        for at in range(max(len(p) for p in pieces)):
            rows = []
            for g, text, lengths in zip(rows_of, whole, pieces, strict=True):
                if at >= len(lengths):
                    continue
                end = g.computed + lengths[at]
                g.tokens = text[:end]
                while len(g.blocks) < self._pool.blocks_for(end):
                    g.blocks.append(self._pool.take())
                rows.append(Row(g, g.computed, lengths[at], decodes=False))
            batch = pack(rows, self._pool.block_tokens, torch.device("cpu"))
            logits = self._model.forward(batch, self._cache)
            for row, one in zip(batch.rows, logits, strict=True):
                out[int(row.generation.request.request_id)].append(one)
                row.generation.computed += row.count
        return [torch.stack(o) for o in out]
