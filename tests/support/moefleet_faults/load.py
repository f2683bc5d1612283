"""Two kinds of clients at a steady rate: ours, whose answers go on by themselves, and a plain gRPC one. Each token is checked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

import grpc
import grpc.aio
from moefleet.client import AsyncClient, MoefleetError, Stopping
from moefleet.client.errors import failure_of
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as rpc
from moefleet_load.stream import channel

from .ended import Client, End, Ended
from .scenario import Load

# Prompts that take turns; each has an answer of an undisturbed run to be compared with.
PROMPTS = 12
PROMPT_TOKENS = {"Simulated": 200, "Torch": 24}
# Each of our clients has a connection of its own: a Service balances connections, and with six some go through either gateway
# (all through one: 1 in 32).
CONNECTIONS = 6
# Far beyond any stream here and inside limits.streamDuration (5 minutes) of the fleets.
DEADLINE_S = 280.0
# Headers of a call that has ended are there or never come.
HEADERS_S = 2.0
POD, HANDOVER, USAGE = "x-moefleet-pod", "x-moefleet-handover", "x-usage-completion-tokens"
_numbers = count()


def prompts(engine: str) -> list[list[int]]:
    """Distinct token ids of the tiny checkpoint's vocabulary."""
    return [[5 + (p * 131 + i * 31) % 1900 for i in range(PROMPT_TOKENS[engine])] for p in range(PROMPTS)]


class _Calls:
    """Stands for the client's stub, and keeps its calls: their headers say which replica answered."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._of: dict[str, list[Any]] = {}

    def Generate(self, request: pb.GenerateRequest, **options: Any) -> Any:
        call = self._stub.Generate(request, **options)
        self._of.setdefault(request.request_id.partition("~")[0], []).append(call)
        return call

    def pop(self, request_id: str) -> list[Any]:
        return self._of.pop(request_id, [])

    def peek(self, request_id: str) -> list[Any]:
        return self._of.get(request_id, [])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)


@dataclass
class Streams:
    """Runs from `start` to `finish`; `ended` grows while it runs, `running` holds what is in flight."""

    service: str
    model: str
    shape: Load
    prompts: Sequence[Sequence[int]]
    # Addresses of gateway pods, when plain clients are bound to them.
    pods: Sequence[str] = ()
    expected: list[list[int]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)
    running: dict[str, Ended] = field(default_factory=dict)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    _ours: list[tuple[str, AsyncClient, _Calls]] = field(default_factory=list)

    async def learn(self) -> None:
        """The answers of an undisturbed run."""
        async with AsyncClient(self.service, timeout_s=DEADLINE_S) as client:
            stopping = Stopping(max_tokens=self.shape.output_tokens, ignore_eos=True)
            answers = await asyncio.gather(
                *(client.generate(self.model, p, stopping=stopping).collect() for p in self.prompts)
            )
        self.expected = [list(a.token_ids) for a in answers]

    async def start(self) -> None:
        for number in range(CONNECTIONS):
            own = (("grpc.use_local_subchannel_pool", 1),)
            client = await self._stack.enter_async_context(
                AsyncClient(self.service, timeout_s=DEADLINE_S, channel_options=own)
            )
            calls = _Calls(client._stub)
            client._stub = calls
            self._ours.append((f"ours {number}", client, calls))
        targets = list(self.pods) or [""] * CONNECTIONS
        plain = [
            (target, await self._stack.enter_async_context(channel(target or self.service)))
            for target in targets
        ]
        self._spawn(self._arrivals("ours", self.shape.ours_per_s, self._ours))
        self._spawn(self._arrivals("plain", self.shape.plain_per_s, plain))

    def quiet(self) -> None:
        self._quiet.set()

    async def finish(self, limit_s: float = DEADLINE_S + 20) -> int:
        """No new requests; waits for those that run. Returns how many had to be given up."""
        self.quiet()
        until = time.monotonic() + limit_s
        while self._tasks and time.monotonic() < until:
            await asyncio.wait(set(self._tasks), timeout=1)
        left = len(self._tasks)
        for task in set(self._tasks):
            task.cancel()
        await self._stack.aclose()
        return left

    def running_in(self, hurt: frozenset[str]) -> int:
        return sum(bool({*r.pods, r.through} & hurt) for r in self.running.values())

    async def look(self) -> None:
        """Fills in which replica answers those of our streams that run."""
        for _, _, calls in self._ours:
            for request in list(self.running.values()):
                for call in calls.peek(request.request_id):
                    with contextlib.suppress(asyncio.TimeoutError, grpc.aio.AioRpcError):
                        note = asyncio.shield(asyncio.ensure_future(call.initial_metadata()))
                        _note_pod(request, await asyncio.wait_for(note, 0.01))

    # --- one request --------------------------------------------------------------------------------------------
    async def _arrivals(self, client: Client, per_s: float, over: Sequence[Any]) -> None:
        begin, turns, prompt = time.monotonic(), cycle(over), cycle(range(len(self.prompts)))
        for index in count():
            wait_s = begin + index / per_s - time.monotonic()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), max(0.0, wait_s))
            if self._quiet.is_set():
                return
            one = self._one_of_ours if client == "ours" else self._one_plain
            request = Ended(f"{client}-{next(_numbers)}", client, time.monotonic(), prompt=next(prompt))
            self._spawn(self._counted(request, one(request, *next(turns))))

    async def _counted(self, request: Ended, run: Any) -> None:
        self.running[request.request_id] = request
        try:
            await run
        finally:
            del self.running[request.request_id]
            request.ended_s = time.monotonic()
            want = self.expected[request.prompt]
            whole = request.end is not End.OK or len(request.tokens) == len(want)
            request.right = whole and request.tokens == want[: len(request.tokens)]
            self.ended.append(request)

    async def _one_of_ours(self, request: Ended, connection: str, client: AsyncClient, calls: _Calls) -> None:
        request.connection = connection
        stopping = Stopping(max_tokens=self.shape.output_tokens, ignore_eos=True)
        stream = client.generate(
            self.model, self.prompts[request.prompt], stopping=stopping, request_id=request.request_id
        )
        pace = _Pace(request)
        try:
            async for delta in stream:
                request.tokens.extend(delta.token_ids)
                pace.message()
            request.end = End.OK
        except MoefleetError as error:
            request.code, request.reason, request.detail = error.code.name, error.reason, str(error)
            request.safe_to_retry = error.safe_to_retry
            request.end = End.CUT if request.tokens else End.FAILED
        request.resumed = stream.answer.resumed
        for call in calls.pop(request.request_id):
            with contextlib.suppress(asyncio.TimeoutError, grpc.aio.AioRpcError, asyncio.CancelledError):
                _note_pod(request, await asyncio.wait_for(call.initial_metadata(), HEADERS_S))
                _note_trailers(request, await asyncio.wait_for(call.trailing_metadata(), HEADERS_S))

    async def _one_plain(self, request: Ended, target: str, opened: grpc.aio.Channel) -> None:
        request.through = target
        message = pb.GenerateRequest(
            request_id=request.request_id,
            model=self.model,
            token_ids=pb.TokenIds(ids=self.prompts[request.prompt]),
            stopping=pb.Stopping(max_tokens=self.shape.output_tokens, ignore_eos=True),
        )
        pace = _Pace(request)
        finished = False
        try:
            call = rpc.InferenceServiceStub(opened).Generate(message, timeout=DEADLINE_S)
            async for part in call:
                if not pace.begun:
                    _note_pod(request, await call.initial_metadata())
                request.tokens.extend(part.token_ids)
                finished = finished or bool(part.finish_reason)
                pace.message()
            _note_trailers(request, await call.trailing_metadata())
            request.end = End.OK if finished else End.CUT
            request.detail = "" if finished else "the stream ended without a finish reason"
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error.code(), error.details(), error.trailing_metadata())
            request.code, request.reason, request.detail = error.code().name, failure.reason, failure.message
            if "safeToRetry" in failure.metadata:
                request.safe_to_retry = failure.metadata["safeToRetry"] == "true"
            request.end = End.CUT if request.tokens else End.FAILED

    def _spawn(self, run: Any) -> None:
        task = asyncio.create_task(run)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Pace:
    def __init__(self, request: Ended) -> None:
        self._request = request
        self._last_s = 0.0
        self.begun = False

    def message(self) -> None:
        now = time.monotonic()
        if not self.begun:
            self.begun = True
            self._request.ttft_s = now - self._request.began_s
        else:
            self._request.longest_pause_s = max(self._request.longest_pause_s, now - self._last_s)
        self._last_s = now


def _note_pod(request: Ended, metadata: Any) -> None:
    pod = next((str(v) for k, v in metadata or () if k == POD), "")
    if pod and pod not in request.pods:
        request.pods.append(pod)


def _note_trailers(request: Ended, metadata: Any) -> None:
    for key, value in metadata or ():
        if key == USAGE:
            request.trailer_tokens = int(value)
        elif key == HANDOVER:
            request.handed_over = True


@contextlib.asynccontextmanager
async def streaming(streams: Streams) -> AsyncIterator[Streams]:
    """Begun with answers to compare with; left when every stream has ended."""
    await streams.learn()
    await streams.start()
    try:
        yield streams
    finally:
        await streams.finish()
