"""The Simulated engine: the tokens and the pace of a calibrated replica in real time, without its work.

`SimulatedReplica` knows what each step does and when it ends; here it is held against the clock. Each step ends when the
calibration says, whatever the machine was doing: after a late wake-up, the steps that are over are caught up with, each at
its own time, so that a busy machine makes tokens late but never makes the replica slower. A process that stood still for
longer than `STALL_S` and than a step (SIGSTOP, a frozen node) has lost that time, as a real one has.
"""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Final

import moefleet_perf as perf

from moefleet_runtime.engine.arguments import SimulatedArguments
from moefleet_runtime.engine.base import (
    Engine,
    EngineDead,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSettings,
    Sink,
    StartFailed,
    TokenDelta,
)
from moefleet_runtime.engine.prefixes import PrefixChanges
from moefleet_runtime.engine.simulated_replica import SimulatedReplica, block_hashes
from moefleet_runtime.tokenizer import END, FIRST_WORD

# At most this often a second does the thread wake: steps of a few ms are handed over several at a time.
WAKE_S: Final = 0.005
DEFAULT_VOCABULARY: Final = 102400


def make_engine(settings: EngineSettings) -> Engine:
    arguments = settings.arguments
    assert isinstance(arguments, SimulatedArguments)
    try:
        calibration = perf.load_calibration(arguments.calibration)
    except perf.CalibrationError as error:
        raise StartFailed("EngineArgumentInvalid", f"engine.args.calibration: {error}") from error
    # The fleet's limits bind where they are tighter; they cannot make the replica larger than it was calibrated.
    ranks = settings.tensor_parallel if settings.attention_data_parallel else 1
    limits = calibration.limits
    calibration = perf.with_limits(
        calibration,
        max_sequences=min(limits.max_sequences, (settings.max_batch_size or 1 << 30) * ranks),
        max_batch_tokens=min(limits.max_batch_tokens, settings.max_batch_tokens or 1 << 30),
    )
    replica = SimulatedReplica(
        perf.scaled(calibration, arguments.speed),
        vocabulary_size=arguments.vocabulary_size or _vocabulary(settings.model_path),
        max_queued=settings.max_queued,
        kv_reuse=settings.kv_reuse,
        mean_output_tokens=arguments.mean_output_tokens,
        step_error_every=arguments.faults.step_error_every,
    )
    return SimulatedEngine(replica, settings, arguments)


class SimulatedEngine:
    def __init__(
        self, replica: SimulatedReplica, settings: EngineSettings, arguments: SimulatedArguments
    ) -> None:
        self._replica = replica
        self._settings = settings
        self._arguments = arguments
        # Around every use of the replica; never held while a step passes.
        self._change = threading.Condition()
        self._hung = False
        self._stopped = False
        self._sink: Sink | None = None
        self._thread: threading.Thread | None = None

    def start(self, sink: Sink) -> EngineInfo:
        time.sleep(self._arguments.start_seconds)
        if self._arguments.faults.fail_start:
            raise StartFailed("EngineStartFailed", self._arguments.faults.fail_start)
        calibration = self._replica.calibration
        limits = calibration.limits
        self._sink = sink
        self._thread = threading.Thread(target=self._loop, args=(sink,), name="steps", daemon=True)
        self._thread.start()
        return EngineInfo(
            model_name=self._settings.model_name,
            context_length=min(self._settings.context_length, limits.kv_max_tokens),
            vocabulary_size=self._replica.vocabulary_size,
            eos_token_ids=(END,),
            kv_max_tokens=limits.kv_max_tokens,
            max_batch_size=limits.max_sequences,
            max_batch_tokens=limits.max_batch_tokens,
            engine_version=f"{calibration.name} at speed {self._arguments.speed:g}",
            device="simulated",
            tune_s=0.0,
            # As with temperature: its tokens come from no distribution that these could shape. What would show in the
            # answer (a banned token, a length, a form) it cannot do.
            supports=frozenset({"min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}),
        )

    def submit(self, request: EngineRequest) -> None:
        hashes = block_hashes(request) if self._settings.kv_reuse else ()
        with self._change:
            if self._stopped or self._sink is None:
                raise EngineDead("the engine is stopped")
            self._replica.submit(request, hashes, time.monotonic())
            self._change.notify()

    def abort(self, request_id: str) -> None:
        # No notify: it takes effect at the end of the step that runs.
        with self._change:
            self._replica.abort(request_id)

    def load(self) -> EngineLoad:
        with self._change:
            return self._replica.load()

    def prefix_changes(self) -> PrefixChanges | None:
        return self._replica.prefixes.drain() if self._settings.kv_reuse else None

    def stop(self) -> None:
        with self._change:
            self._stopped = True
            self._change.notify()
        if self._thread is not None:
            self._thread.join()

    def _loop(self, sink: Sink) -> None:
        try:
            while not self._stopped:
                if out := self._wake():
                    sink.deltas(out)
            with self._change:
                left = self._replica.end_all()
            sink.deltas(left)
        except Exception as error:
            # Without this thread nothing steps any more, and nobody would know.
            sink.died(f"{type(error).__name__}: {error}")

    def _wake(self) -> list[TokenDelta]:
        """Sleeps until something is due, then does what the time until now asks for."""
        with self._change:
            earliest_s = time.monotonic() + WAKE_S
            while not self._stopped:
                due_s = math.inf if self._hung else self._replica.due_s()
                wait_s = None if due_s is None else max(due_s, earliest_s) - time.monotonic()
                if wait_s is not None and wait_s <= 0:
                    break
                self._change.wait(wait_s if wait_s is None else min(wait_s, threading.TIMEOUT_MAX))
            out = self._replica.catch_up(time.monotonic())
            self._rehearse_faults()
            return out

    def _rehearse_faults(self) -> None:
        faults, tokens = self._arguments.faults, self._replica.output_tokens_total
        if faults.die_after_tokens and tokens >= faults.die_after_tokens:
            os.kill(os.getpid(), signal.SIGKILL)
        if faults.hang_after_tokens and tokens >= faults.hang_after_tokens:
            self._hung = True


def _vocabulary(folder: Path | None) -> int:
    """Of the model that is stood in for, when its configuration is there."""
    file = folder / "config.json" if folder else None
    if file is None or not file.exists():
        return DEFAULT_VOCABULARY
    try:
        return max(int(json.loads(file.read_text())["vocab_size"]), FIRST_WORD + 1)
    except (ValueError, KeyError, TypeError) as error:
        raise StartFailed("CheckpointUnreadable", f"{file}: vocab_size: {error!r}") from error
