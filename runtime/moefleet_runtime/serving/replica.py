"""The replica: everything of the server process put together, from the first listening socket to the exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Final

import structlog
from moefleet.replica.v1 import replica_pb2 as pb
from moefleet_weights.source import Remote

from moefleet_runtime.ending import Exit, Failure, FatalError
from moefleet_runtime.engine.base import EngineInfo, EngineRequest, EngineSettings, Finish
from moefleet_runtime.fetching import Fetched, FetchProgress, fetch_weights
from moefleet_runtime.garbage import settle
from moefleet_runtime.host.client import EngineClient
from moefleet_runtime.life import (
    CanaryFailed,
    CanaryPassed,
    EngineStarted,
    Event,
    Failed,
    Fetching,
    HostUp,
    Life,
    Phase,
    State,
    StepFailed,
    StreamsChanged,
    Terminated,
    advance,
)
from moefleet_runtime.metrics import ServerMetrics
from moefleet_runtime.process_tree import work_bytes
from moefleet_runtime.serving.admission import Admission
from moefleet_runtime.serving.checks import ModelLimits
from moefleet_runtime.serving.control import Changes, ReplicaService
from moefleet_runtime.serving.generation import Generation
from moefleet_runtime.serving.handover import LONGEST_WITHOUT_ENGINE_S, Handover
from moefleet_runtime.serving.health import Health
from moefleet_runtime.serving.inference import InferenceService, Served
from moefleet_runtime.serving.listening import Listeners
from moefleet_runtime.serving.trtllm import ReplicaView, TrtllmService
from moefleet_runtime.settings import Settings
from moefleet_runtime.source import locate_source, resolve_source
from moefleet_runtime.starting import START_STALL_S, StartWatch
from moefleet_runtime.tokenizer import load_tokenizer

log = structlog.get_logger()

# How often the engine is looked at for a hang.
CHECK_S: Final = 0.25
# The canary: a few real tokens, from any prompt; more would only make cold starts longer.
CANARY_PROMPT_TOKENS: Final = 8
CANARY_TOKENS: Final = 4
CANARY_RETRY_S: Final = 0.25
# After the last stream: what the last messages, trailers and watchers may take to be on the wire.
FAREWELL_S: Final = 1.0
# After a failure: how long those who have not heard of it may still send requests.
LAST_REQUESTS_S: Final = 0.5
# Checkpoint folders that a Simulated engine can do without.
NEEDS_CHECKPOINT: Final = {"Torch": True, "TensorRTLLM": True, "Simulated": False}
DEFAULT_BATCH_SIZE: Final = 64
DEFAULT_BATCH_TOKENS: Final = 256


class Replica:
    """Also the engine client's Watcher."""

    def __init__(self, settings: Settings) -> None:
        config = settings.config
        self._settings = settings
        self._config = config
        self._incarnation = uuid.uuid4().hex
        self._seq = 0
        self._life = Life(born_s=time.monotonic())
        self._changes = Changes()
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        found = _model_path(settings)
        # One of them: weights that are here, or what is to be fetched first.
        self._model_path = found if isinstance(found, Path) else None
        self._remote = None if isinstance(found, Path) else found
        self._progress = FetchProgress(0, 0, "")
        self._fetch_s = 0.0
        stall_s = config.limits.start_stall_s or START_STALL_S[config.engine.type]
        self._start_watch = StartWatch(self._life.born_s, stall_s, settings.start_budget_s)
        # Holds its snapshot while the process lives.
        self._fetched: Fetched | None = None
        self.client = EngineClient(self, stall_s=config.limits.stall_s)
        self._served = Served(
            names=config.model_names,
            fleet=config.fleet,
            engine=config.engine.type,
            pod_uid=settings.pod_uid,
        )
        self._admission = Admission(
            pod_uid=settings.pod_uid,
            model_name=config.model.name,
            queued_requests=config.limits.queued_requests,
            life=lambda: self._life,
            on_change=self._streams_changed,
        )
        self._metrics = ServerMetrics(
            model=config.model.name,
            kv_block_tokens=int(getattr(config.engine.arguments, "block_tokens", 32)),
        )
        self._metrics.watch(
            lambda: self.client.load,
            refused=lambda: dict(self._admission.refused),
            cut=lambda: self._admission.cut_total,
        )
        self._generation = Generation(
            self.client,
            self._admission,
            self._metrics,
            stream_duration_s=config.limits.stream_duration_s,
        )
        self._handover = Handover(settings.peers)
        self._view = ReplicaView(self._life, config.engine.parallelism.tensor)
        self._health = Health()

    @property
    def life(self) -> Life:
        return self._life

    async def run(self) -> tuple[Exit, Failure | None]:
        """Serves until told to stop or until nothing can be served any more."""
        config = self._config
        listeners = Listeners()
        # One thread: tokenising is for the processor that streams need too.
        tokenizing = ThreadPoolExecutor(1, thread_name_prefix="tokenizing")
        try:
            if self._remote is None:
                # Before anything else has threads or descriptors that the host process could inherit.
                await self._start_engine()
            else:
                self.apply(Fetching("the weights are asked for"))
            await listeners.open(
                config,
                inference=InferenceService(
                    self._served, self._admission, self._generation, tokenizing, self._handover
                ),
                trtllm=TrtllmService(self._served, self._admission, self._generation, self._view),
                replica=ReplicaService(
                    pod_uid=self._settings.pod_uid,
                    token_sha256=config.control.token_sha256,
                    life=lambda: self._life,
                    apply=self.apply,
                    sample=self.sample,
                    changes=self._changes,
                    prefixes=self.client.prefixes,
                ),
                health=self._health,
                registry=self._metrics.registry,
            )
            if not config.control.token_sha256:
                log.warning("control port unchecked", reason="control.tokenSha256 is empty")
            checking = asyncio.create_task(self._check())
            fetching = asyncio.create_task(self._fetch(self._remote)) if self._remote is not None else None
            await self._over.wait()
            checking.cancel()
            if fetching is not None:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)
            return await self._end(listeners)
        except FatalError as error:
            return error.failure.exit, error.failure
        finally:
            await self.client.stop()
            await listeners.close(0)
            await self._handover.close()
            tokenizing.shutdown(wait=False, cancel_futures=True)

    async def _start_engine(self) -> None:
        await self.client.start(self._config.engine.type, _engine_settings(self._settings, self._model_path))
        self.apply(HostUp())

    async def _fetch(self, source: Remote) -> None:
        """Probes and watchers are answered meanwhile; the engine starts when the weights are here."""
        try:
            self._fetched = await fetch_weights(
                str(source),
                self._config.model.cache,
                # The Torch engine computes in its precision whatever the checkpoint has.
                precision=self._config.engine.precision if self._config.engine.type != "Torch" else "Auto",
                tell=self._show_fetch,
            )
            self._model_path = self._fetched.folder
            self._fetch_s = time.monotonic() - self._life.born_s
            log.info(
                "weights here",
                source=str(source),
                origin=self._fetched.origin,
                folder=str(self._fetched.folder),
                seconds=round(self._fetch_s, 3),
            )
            await self._start_engine()
        except FatalError as error:
            log.error("fetch failed", reason=error.failure.reason, message=error.failure.message)
            self.apply(Failed(error.failure))
        except Exception as error:
            # Nobody waits for this task while it runs: whatever goes wrong has to end the process with a sentence.
            self.apply(Failed(Failure("FetchFailed", f"{source}: {type(error).__name__}: {error}")))

    def _show_fetch(self, progress: FetchProgress) -> None:
        self._progress = progress
        self.apply(Fetching(f"fetches {self._remote}: {progress.text}"))

    def _streams_changed(self, inside: int) -> None:
        """Twice a request: only who drains waits for it, and every other event brings the number with it."""
        if self._life.drain is not None:
            self.apply(StreamsChanged(inside))

    def apply(self, event: Event) -> None:
        """The one place where the replica's life changes."""
        before, now_s = self._life, time.monotonic()
        counted = advance(before, StreamsChanged(self._admission.inside), now_s)
        self._life = self._view.life = life = advance(counted, event, now_s)
        if life == before:
            return
        self._health.show(life)
        if life.state is not before.state or life.phase is not before.phase:
            log.info(
                "state",
                state=life.state.name.capitalize(),
                was=before.state.name.capitalize(),
                why=life.explanation,
                active=life.active,
            )
            self._metrics.state(life.state, State)
            self._changes.announce()
        if life.over:
            self._over.set()

    def terminate(self, signal_name: str) -> None:
        """SIGTERM and SIGINT. The second one does not wait for streams any more."""
        if self._life.terminated:
            self._cut(f"the process was told to stop again ({signal_name})")
            return
        log.info("told to stop", signal=signal_name, active=self._admission.inside)
        self.apply(Terminated())
        if not self._life.over:
            asyncio.get_running_loop().call_later(
                self._config.drain_timeout_s,
                self._cut,
                f"the replica ends: drainTimeoutS of {self._config.drain_timeout_s:g} s is over",
            )

    def sample(self) -> pb.LoadSample:
        self._seq += 1
        load, life, admission = self.client.load, self._life, self._admission
        queued = min(load.queued, admission.inside)
        steps = load.steps
        prompt_tokens, answer_tokens = self.client.unreported_tokens
        return pb.LoadSample(
            pod_uid=self._settings.pod_uid,
            incarnation=self._incarnation,
            seq=self._seq,
            state=pb.ReplicaState.Name(life.state),
            message=life.explanation,
            active=admission.inside - queued,
            queued=queued,
            outstanding_prefill_tokens=load.outstanding_prefill_tokens + prompt_tokens,
            outstanding_decode_tokens=load.outstanding_decode_tokens + answer_tokens,
            kv_used_tokens=load.kv_used_tokens,
            kv_max_tokens=load.kv_max_tokens,
            steps=pb.StepSums(**{name: getattr(steps, name) for name in steps.__slots__}),
            prompt_tokens_total=load.prompt_tokens_total,
            cached_tokens_total=load.cached_tokens_total,
            output_tokens_total=load.output_tokens_total,
            oldest_active_s=admission.oldest_s(time.monotonic()),
            admitted_total=admission.admitted_total,
            refused_total=admission.refused_total,
            cut_total=admission.cut_total,
            start_s=life.start_s,
            fetched_bytes=self._progress.done_bytes,
            fetch_bytes=self._progress.total_bytes,
            fetch_s=self._fetch_s,
            load_s=life.load_s,
            tune_s=self._view.info.tune_s if self._view.info is not None else None,
            outcomes=self._generation.outcomes.message(),
            kv_reusable_tokens=load.kv_reusable_tokens,
        )

    # -- what the engine client reports

    def engine_started(self, info: EngineInfo) -> None:
        try:
            self._served.tokenizer = load_tokenizer(self._model_path, info.vocabulary_size)
        except FatalError as error:
            self.apply(Failed(error.failure))
            return
        self._served.folder = self._model_path
        self._view.info = info
        self._served.limits = ModelLimits(
            context_length=min(info.context_length, self._config.context_length),
            vocabulary_size=info.vocabulary_size,
            kv_max_tokens=info.kv_max_tokens,
            eos_token_ids=info.eos_token_ids,
            supports=info.supports,
        )
        self._admission.places = info.max_batch_size + self._config.limits.queued_requests
        settle()
        log.info(
            "engine started",
            engine=self._config.engine.type,
            version=info.engine_version,
            device=info.device,
            context_length=self._served.limits.context_length,
            kv_max_tokens=info.kv_max_tokens,
            max_batch_size=info.max_batch_size,
        )
        self.apply(EngineStarted())
        self._spawn_canary()

    def engine_failed(self, failure: Failure) -> None:
        log.error("engine failed", reason=failure.reason, message=failure.message)
        self.apply(Failed(failure))

    def engine_step_failed(self, message: str) -> None:
        log.error("step failed", message=message)
        serving = self._life.phase is Phase.SERVING
        self.apply(StepFailed(message))
        if serving:
            self._spawn_canary()

    def _spawn_canary(self) -> None:
        task = asyncio.get_running_loop().create_task(self._canary())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _canary(self) -> None:
        """Real tokens through the whole engine, or the replica is not ready whatever the engine says of itself."""
        info = self._view.info
        assert info is not None
        # A prompt that no cache knows: it starts with what the clock says.
        salt = time.monotonic_ns()
        length = min(CANARY_PROMPT_TOKENS, info.context_length - 1)
        prompt = tuple((salt >> shift) % info.vocabulary_size for shift in range(length))
        wanted = min(CANARY_TOKENS, info.context_length - length)
        began_s = time.monotonic()
        for attempt in count():
            name = f"canary-{salt}-{attempt}"
            stream = self.client.submit(EngineRequest(name, prompt, wanted, ignore_eos=True, cache_salt=name))
            await stream.wait(wanted + 1)
            if stream.fault is None or stream.fault.kind != "full":
                break
            # After a failed step the queue may be full of those who came before; nobody new is let in, so it empties.
            await asyncio.sleep(CANARY_RETRY_S)
        if stream.finish is Finish.LENGTH and stream.produced == wanted:
            log.info("canary passed", seconds=round(time.monotonic() - began_s, 3), tokens=stream.produced)
            self.apply(CanaryPassed())
            return
        found = stream.fault.message if stream.fault else f"finish {stream.finish!r}"
        self.apply(
            CanaryFailed(
                f"wanted {wanted} tokens for a prompt of {len(prompt)}, got {stream.produced}: {found}"
            )
        )

    # -- going on and ending

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            now_s = time.monotonic()
            self.client.check(now_s)
            if stalled := self._admission.end_stalled(now_s):
                log.warning("readers stalled", requests=len(stalled), first=stalled[0])
            if not self._life.start_s and not self._life.failure:
                await self._check_start(now_s)

    async def _check_start(self, now_s: float) -> None:
        """A start that gets on is never ended, however long it takes; one that does not is, with a sentence."""
        watch = self._start_watch
        if now_s < watch.next_look_s:
            return
        # In a thread: it looks through all processes.
        work = await asyncio.to_thread(work_bytes, os.getpid())
        watch.look(now_s, work, (self._life.phase, self._progress.done_bytes))
        if watch.handed_over:
            self._health.handed_over()
        if stalled_s := watch.stalled_s(now_s):
            self.apply(
                Failed(
                    Failure(
                        "StartStalled",
                        f"{self._life.phase.name.lower()}: no byte was fetched, read or mapped for {stalled_s:.0f} s"
                        f" (limit {watch.stall_s:g} s): {self._life.explanation}",
                    )
                )
            )

    def _cut(self, why: str) -> None:
        if not self._life.terminated or not self._admission.inside:
            return
        cut = self._admission.cut(why)
        log.error("streams cut", streams=cut, cut_total=self._admission.cut_total, why=why)

    async def _end(self, listeners: Listeners) -> tuple[Exit, Failure | None]:
        self._changes.announce()
        if self._life.failure is not None:
            # Requests that were sent before their senders could know are refused with a reason; a server that stops at
            # once would give those that it has not looked at yet a bare CANCELLED, which nobody tries again.
            await asyncio.sleep(LAST_REQUESTS_S)
            await self._handover.ended(LONGEST_WITHOUT_ENGINE_S)
        # A failure leaves streams that were just answered; a drain leaves none, only watchers.
        await listeners.close(FAREWELL_S)
        failure = self._life.failure
        if failure is not None:
            return failure.exit, failure
        cut = self._admission.cut_total
        log.info("ends", served=self._admission.admitted_total, cut=cut, moved=self._handover.moved_total)
        return (Exit.STREAMS_CUT if cut else Exit.DRAINED), None


def _model_path(settings: Settings) -> Path | Remote | None:
    config = settings.config
    if NEEDS_CHECKPOINT[config.engine.type]:
        return resolve_source(config.model.source)
    # Stands in for a checkpoint: uses its tokenizer when the folder is here, and does without when it is not.
    with contextlib.suppress(FatalError):
        folder = locate_source(config.model.source)
        if isinstance(folder, Path) and folder.is_dir():
            return folder
    if config.model.source:
        log.info("no checkpoint folder", source=config.model.source, tokenizer="built in")
    return None


def _engine_settings(settings: Settings, model_path: Path | None) -> EngineSettings:
    config = settings.config
    engine = config.engine
    # The others know better what fits: a calibration, a preset.
    plain = engine.type == "Torch"
    return EngineSettings(
        model_name=config.model.name,
        model_path=model_path,
        context_length=config.context_length,
        arguments=engine.arguments,
        precision=engine.precision,
        kv_precision=engine.kv_cache.precision,
        kv_memory_fraction=engine.kv_cache.memory_fraction,
        kv_reuse=engine.kv_cache.reuse,
        # 0: the engine's own.
        max_batch_size=engine.limits.max_batch_size or (DEFAULT_BATCH_SIZE if plain else 0),
        max_batch_tokens=engine.limits.max_batch_tokens or (DEFAULT_BATCH_TOKENS if plain else 0),
        max_queued=config.limits.queued_requests,
        tensor_parallel=engine.parallelism.tensor,
        expert_parallel=engine.parallelism.expert,
        attention_data_parallel=engine.parallelism.attention_data,
        cpus=settings.cpus,
    )
