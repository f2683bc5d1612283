"""An answer that this replica cannot end is ended by another one, and relayed: the consumer sees one unbroken stream.

For any client of InferenceService: when the engine dies, when a step fails, or when this process may not wait any longer for
its streams. The relay lives as long as this process does; what outlives that breaks off, and resumes at the client or not at all.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import structlog
from moefleet.client.connecting import CHANNEL_OPTIONS
from moefleet.client.course import Run
from moefleet.client.errors import MoefleetError, failure_of
from moefleet.client.resuming import INCOMPLETE
from moefleet.client.types import ResumePolicy
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet.inference.v1 import inference_pb2_grpc as services

from moefleet_runtime.serving.generation import Piece, Usage
from moefleet_runtime.serving.problems import Context, Problem

log = structlog.get_logger()

# In the metadata of a relayed request (such a one is not handed over again: the relay itself asks another peer) and in the
# trailers of an answer that moved.
HANDOVER_HEADER: Final = "x-moefleet-handover"
# How long a process whose engine is dead relays before it ends and is started anew: its GPUs are idle meanwhile.
LONGEST_WITHOUT_ENGINE_S: Final = 60.0
# What is not the request's fault.
MOVABLE: Final = frozenset({"ENGINE_DIED", "STREAM_CUT", "STEP_FAILED"})
# Peers may be starting or full; whoever waits for an answer that has begun waits some seconds rather than in vain.
# One engine has failed already where this is why: a second one, and the request is not tried on a third.
POLICY: Final = ResumePolicy(most=4, attempts=8, deaths=1, first_wait_s=0.05, longest_wait_s=1.0)
NAMES_TIMEOUT_MS: Final = 2_000
# One call to each peer in turn: one that has just died, or this replica itself where DNS is old, costs one attempt.
_ROUND_ROBIN: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})


@dataclass(slots=True)
class Sent:
    """What the consumer has of one answer."""

    token_ids: list[int] = field(default_factory=list)
    text_characters: int = 0

    def add(self, piece: Piece) -> None:
        self.token_ids += piece.tokens
        self.text_characters += len(piece.text)


def rest_of(request: pb.GenerateRequest, request_id: str, sent: Sent) -> pb.GenerateRequest:
    """What a peer is asked for: the request, and all that the consumer has, what it had before it came here included."""
    rest = pb.GenerateRequest()
    rest.CopyFrom(request)
    rest.request_id = request_id
    if sent.token_ids or sent.text_characters:
        rest.resume.token_ids.extend(sent.token_ids)
        rest.resume.text_characters += sent.text_characters
    return rest


class Handover:
    """`target`: the fleet's other replicas, as gRPC resolves it; empty: there is none, and nothing is handed over."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._stub: Any = None
        self._channel: Any = None
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.moved_total = 0
        self.lost_total = 0

    def possible_for(self, metadata: Any) -> bool:
        return bool(self._target) and all(name != HANDOVER_HEADER for name, _ in metadata or ())

    async def relay(
        self, rest: pb.GenerateRequest, problem: Problem, context: Context, pod_uid: str, *, began: bool
    ) -> bool:
        """Answers with what a peer makes; False when none ended the answer, and `problem` is what there is to say.

        `began`: the consumer has a first message."""
        left_s = context.time_remaining()
        if problem.reason == "ENGINE_DIED":
            left_s = LONGEST_WITHOUT_ENGINE_S if left_s is None else min(left_s, LONGEST_WITHOUT_ENGINE_S)
        request_id = rest.request_id
        self._running += 1
        self._idle.clear()
        try:
            async with aclosing(self.messages(rest, left_s=left_s)) as messages:
                async for message in messages:
                    message.request_id = ""
                    if not began:
                        await context.send_initial_metadata((("x-moefleet-pod", pod_uid),))
                        message.request_id = request_id
                        began = True
                    if message.finish_reason:
                        used = message.usage
                        usage = Usage(used.prompt_tokens, used.completion_tokens, used.cached_prompt_tokens)
                        context.set_trailing_metadata((*usage.trailers(), (HANDOVER_HEADER, "1")))
                    await context.write(message)
        except MoefleetError as error:
            self.lost_total += 1
            log.warning("handover failed", request_id=request_id, why=problem.reason, error=str(error))
            return False
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
        self.moved_total += 1
        return True

    async def messages(
        self, rest: pb.GenerateRequest, *, left_s: float | None
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Until the last message. Raises MoefleetError when no peer ends the answer."""
        run = Run(rest, POLICY)
        until_s = None if left_s is None else time.monotonic() + left_s
        while not run.over:
            left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
            failure = INCOMPLETE
            call = self._peers().Generate(
                run.next_request(), timeout=left_s, metadata=((HANDOVER_HEADER, "1"),)
            )
            try:
                async for message in call:
                    run.take(message)
                    yield message
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error.code(), error.details(), error.trailing_metadata())
            finally:
                call.cancel()
            if not run.over:
                left_s = None if until_s is None else max(until_s - time.monotonic(), 0.0)
                await asyncio.sleep(run.broke(failure, left_s=left_s, chance=random.random()))

    async def ended(self, timeout_s: float) -> None:
        """Until no relay runs, or the time is over: a reader that does not read must not hold a dead process."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _peers(self) -> Any:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                self._target,
                options=(
                    *CHANNEL_OPTIONS,
                    ("grpc.service_config", _ROUND_ROBIN),
                    # Without a name server the consumer is to hear of it soon; the default is two minutes.
                    ("grpc.dns_ares_query_timeout", NAMES_TIMEOUT_MS),
                    # Pods are never behind a proxy.
                    ("grpc.enable_http_proxy", 0),
                ),
            )
            self._stub = services.InferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]
        return self._stub
