"""Envoy's external processor on the edge: which fleet a request is for, under an id that nobody else can make, and when a
refused client may come again.

Asked for headers and body of a request and for the headers of its answer. Without it Envoy goes on: requests that have
begun are not cut when the picker restarts, and new ones have no id that the inner listener would accept.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from moefleet_gateway.ext_proc import KNOW_WAIT_S
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.openai.errors import RETRY_AFTER, immediate, seconds, set_header
from moefleet_gateway.openai.ids import sign
from moefleet_gateway.openai.served import ServedModels
from moefleet_gateway.picking.core import Ask, End, Pick, Ticket
from moefleet_gateway.picking.facts import Fleet
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.refusals import Refusal, bad_request, starting, unknown_model
from moefleet_gateway.streams import Call, Stream

CHAT = "/v1/chat/completions"
# Refused requests whose answer is still on its way out through SMG; each is there for milliseconds.
REFUSALS_MAX = 10_000
# From a fleet's first replica to its chats being served: a few megabytes of tokenizer, read by SMG.
TOKENIZER_WAIT_S = 30.0
# Statuses with which a client is sent away for a while, and for how long when nobody says it.
_COME_AGAIN = frozenset({"429", "503"})
COME_AGAIN_S = 1.0
# As OpenAI has it.
SEED_MIN, SEED_MAX = -(1 << 63), (1 << 63) - 1
_GO_ON = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()
_NO_CHANGE = pb.ProcessingResponse(response_headers=pb.HeadersResponse()).SerializeToString()


class Edge:
    def __init__(self, gateway: Gateway, served: ServedModels, key: bytes) -> None:
        self.gateway = gateway
        self.served = served
        self.key = key
        self.tasks: set[asyncio.Task[None]] = set()  # the loop itself holds no task
        self._retry_after_s: OrderedDict[str, float] = OrderedDict()

    def open(self, stream: Stream) -> Call:
        return _Process(self, stream)

    def refused(self, edge_id: str, refusal: Refusal) -> None:
        """The inner listener refused; SMG keeps status and message, and loses when to come again."""
        if refusal.retry_after_s is None or not edge_id:
            return
        self._retry_after_s[edge_id] = refusal.retry_after_s
        if len(self._retry_after_s) > REFUSALS_MAX:
            self._retry_after_s.popitem(last=False)

    def retry_after_s(self, edge_id: str) -> float | None:
        """Once."""
        return self._retry_after_s.pop(edge_id, None)


class _Process:
    __slots__ = ("_edge", "_headers", "_id", "_open_ended", "_seed", "_stream", "_task", "_ticket")

    def __init__(self, edge: Edge, stream: Stream) -> None:
        self._edge = edge
        self._stream = stream
        self._headers: dict[str, str] = {}
        self._id = ""
        self._open_ended = False
        self._seed: int | None = None
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[None] | None = None

    def received(self, message: bytes) -> None:
        request = pb.ProcessingRequest.FromString(message)
        match request.WhichOneof("request"):
            case "request_headers":
                self._headers = _pairs(request.request_headers.headers)
                if request.request_headers.end_of_stream:
                    self._refuse(bad_request("body", "the request has no body"))
                else:
                    self._stream.send(_GO_ON)
            case "request_body":
                body = request.request_body.body
                asked = read(body, self._edge.gateway.core.models)
                unknown = isinstance(asked, Refusal) and asked.status == "NOT_FOUND"
                if unknown and not self._edge.gateway.synced:
                    self._later(self._when_known(body))
                else:
                    self._asked(asked, len(body))
            case "response_headers":
                self._answered(_pairs(request.response_headers.headers).get(":status", ""))

    def closed(self) -> None:
        """Envoy has said all; a request that is held goes on."""

    def lost(self) -> None:
        if self._ticket is not None:
            self._edge.gateway.abandon(self._ticket)
        if self._task is not None:
            self._task.cancel()

    def _asked(self, asked: Asked | Refusal, body_bytes: int) -> None:
        if isinstance(asked, Refusal):
            self._refuse(asked)
            return
        # As SMG does without one; a length for completions is SMG's default of 16, as OpenAI's.
        self._seed = asked.seed
        self._open_ended = asked.open_ended and self._headers.get(":path", "").startswith(CHAT)
        if self._edge.served.has(asked.fleet.key):
            self._let_in(asked.fleet, retried=self._headers.get("x-stainless-retry-count", "0") != "0")
        else:
            self._hold(asked.fleet, body_bytes)

    async def _when_known(self, body: bytes) -> None:
        """As for gRPC clients (ext_proc.py): 404 would be untrue, and final."""
        try:
            async with asyncio.timeout(KNOW_WAIT_S):
                await self._edge.gateway.knows.wait()
        except TimeoutError:
            self._refuse(starting(KNOW_WAIT_S))
        else:
            self._asked(read(body, self._edge.gateway.core.models), len(body))

    def _later(self, answering: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(answering)
        self._edge.tasks.add(self._task)
        self._task.add_done_callback(self._edge.tasks.discard)

    def _let_in(self, fleet: Fleet, *, retried: bool) -> None:
        unique = self._headers.get("x-request-id", "").replace(".", "")
        self._id = sign(
            self._edge.key,
            fleet.key,
            unique,
            retried=retried,
            open_ended=self._open_ended,
            seed=self._seed,
        )
        common = pb.CommonResponse()
        set_header(common.header_mutation, "x-request-id", self._id)
        out = pb.ProcessingResponse(request_body=pb.BodyResponse(response=common))
        self._stream.send(out.SerializeToString())

    def _hold(self, fleet: Fleet, body_bytes: int) -> None:
        """SMG cannot make its prompt before a first replica gave the tokenizer: the fleet starts, or sleeps, and this is the
        demand that wakes it."""
        unique = self._headers.get("x-request-id", "")
        answer = self._edge.gateway.pick(
            fleet, Ask(unique, "generate", None, body_bytes), lambda later: self._held(fleet, later)
        )
        if isinstance(answer, Ticket):
            self._ticket = answer
        else:
            self._held(fleet, answer)

    def _held(self, fleet: Fleet, answer: Pick | Refusal) -> None:
        self._ticket = None
        if isinstance(answer, Refusal):
            self._refuse(answer)
            return
        # There is a replica. Its place is free again: the request takes one when SMG has made its prompt.
        unique = self._headers.get("x-request-id", "")
        self._edge.gateway.finish(End(unique, fleet.key, ok=False, failed=False))
        self._later(self._when_served(fleet))

    async def _when_served(self, fleet: Fleet) -> None:
        if await self._edge.served.wait(fleet.key, TOKENIZER_WAIT_S):
            self._let_in(fleet, retried=True)
        else:
            why = self._edge.served.why_not(fleet.key) or "its tokenizer did not come"
            self._refuse(
                Refusal(
                    "UNAVAILABLE",
                    "NO_TOKENIZER",
                    f"fleet {fleet.key} has a replica, but serves no OpenAI requests yet: {why}",
                    retry_after_s=5.0,
                )
            )

    def _answered(self, status: str) -> None:
        retry_s = self._edge.retry_after_s(self._id)
        if status == "404" and self._id:
            # The fleet is known here, so it is SMG that has not been told of it again: it has just been started.
            self._refuse(forgotten())
            return
        if status not in _COME_AGAIN:
            self._stream.end(_NO_CHANGE)
            return
        common = pb.CommonResponse()
        set_header(common.header_mutation, RETRY_AFTER, seconds(COME_AGAIN_S if retry_s is None else retry_s))
        out = pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=common))
        self._stream.end(out.SerializeToString())

    def _refuse(self, refusal: Refusal) -> None:
        self._stream.end(immediate(refusal).SerializeToString())


@dataclass(frozen=True, slots=True)
class Asked:
    fleet: Fleet
    open_ended: bool  # no length is named
    seed: int | None = None  # of 64 bits, without sign


def read(body: bytes, models: ModelTable) -> Asked | Refusal:
    """The fleet of the body's `model`, and what SMG would lose of the rest."""
    try:
        asked: Any = json.loads(body)
    except (ValueError, RecursionError) as error:
        return bad_request("body", f"is not JSON: {str(error)[:200] or type(error).__name__}")
    model = asked.get("model") if isinstance(asked, dict) else None
    if not isinstance(model, str) or not model:
        known = ", ".join(models.names()[:5]) or "none"
        return bad_request("model", f"must name a model; known models: {known}")
    if asked.get("logit_bias"):
        # SMG has no place for it in what it sends, and leaves it out without a word.
        return bad_request("logit_bias", "is not served here; InferenceService takes it")
    seed = asked.get("seed")
    if seed is not None and not (type(seed) is int and SEED_MIN <= seed <= SEED_MAX):
        return bad_request("seed", f"must be an integer of 64 bits, found {json.dumps(seed)[:40]}")
    fleet = models.find(model)
    if fleet is None:
        return unknown_model(model, models.names())
    open_ended = all(asked.get(name) is None for name in ("max_tokens", "max_completion_tokens"))
    # OpenAI's may be negative; a replica's has no sign.
    return Asked(fleet, open_ended, None if seed is None else seed % (1 << 64))


def forgotten() -> Refusal:
    """404 would be untrue, and final to clients."""
    return Refusal(
        "UNAVAILABLE",
        "GATEWAY_STARTING",
        "a part of this gateway has just begun and does not know the model yet; come again",
        metadata=(("safeToRetry", "true"), ("generatedTokens", "0")),
        retry_after_s=COME_AGAIN_S,
    )


def _pairs(headers: Any) -> dict[str, str]:
    return {h.key: (h.raw_value or h.value.encode()).decode("utf-8", "replace") for h in headers.headers}
