"""Envoy's external processor: one stream a request, asked once with headers and body, never for the answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from moefleet_gateway import headers as names
from moefleet_gateway.aborts import Aborts
from moefleet_gateway.errors import immediate
from moefleet_gateway.gateway import Gateway
from moefleet_gateway.picking.core import Pick, Ticket
from moefleet_gateway.picking.facts import Target
from moefleet_gateway.picking.models import ModelTable
from moefleet_gateway.picking.refusals import Refusal, bad_request, starting
from moefleet_gateway.requests import Read, read
from moefleet_gateway.streams import Call, Stream

# Added to limits.streamDuration: the replica ends a stream at its limit with a clear status; this is for the
# replica that does not.
STREAM_GRACE_S = 5.0
# A client ends its call itself, with a clear status, when its deadline comes. Envoy and the replica count from later
# on and could only reset the stream; they end it this much after, for a client that is gone without a word.
DEADLINE_MARGIN_S = 5.0
# For the first lists and load streams of a picker that has just begun; it takes a second.
KNOW_WAIT_S = 20.0
# Picks of one fleet look much alike: to the same replicas in the same order, within the same number of seconds.
ANSWERS_MAX = 4096
_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
_TIMEOUT_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


# path, headers, body, models
Reader = Callable[[str, Mapping[str, str], bytes, ModelTable], Read | Refusal]


class Picker:
    """`reader` and `refused` (id inside the request, refusal) are those of the listener whose requests come here."""

    def __init__(
        self,
        gateway: Gateway,
        aborts: Aborts,
        reader: Reader = read,
        refused: Callable[[str, Refusal], None] | None = None,
    ) -> None:
        self.gateway = gateway
        self.aborts = aborts
        self.reader = reader
        self.refused = refused
        self.tasks: set[asyncio.Task[None]] = set()  # the loop itself holds no task

    def open(self, stream: Stream) -> Call:
        return _Process(self, stream)


class _Process:
    """One request of a consumer. Its answer ends the stream, and that frees the request of this process: Envoy itself
    would keep the stream open as long as the answer runs, and reset the answer with it when the picker dies."""

    __slots__ = ("_grpc_timeout", "_headers", "_inside_id", "_more", "_picker", "_stream", "_task", "_ticket")

    def __init__(self, picker: Picker, stream: Stream) -> None:
        self._picker = picker
        self._stream = stream
        self._headers: dict[str, str] = {}
        self._grpc_timeout = ""
        self._inside_id = ""
        self._more: tuple[tuple[str, str], ...] = ()
        self._ticket: Ticket | None = None
        self._task: asyncio.Task[None] | None = None

    def received(self, message: bytes) -> None:
        request = pb.ProcessingRequest.FromString(message)
        match request.WhichOneof("request"):
            case "request_headers":
                self._headers = {
                    h.key: (h.raw_value or h.value.encode()).decode("utf-8", "replace")
                    for h in request.request_headers.headers.headers
                }
                if request.request_headers.end_of_stream:
                    self._answer(bad_request("message", "the request has no message"))
            case "request_body":
                # All of it: a filter of Envoy waits for the end before we are asked (bootstrap.py).
                body = request.request_body.body
                # A held request may wait for minutes: of headers and body nothing is needed any more.
                headers, self._headers = self._headers, {}
                self._grpc_timeout = headers.get("grpc-timeout", "")
                asked = self._read(headers, body)
                if (
                    not self._picker.gateway.synced
                    and isinstance(asked, Refusal)
                    and asked.status == "NOT_FOUND"
                ):
                    self._later(self._when_known(headers, body))
                else:
                    self._asked(asked)

    def closed(self) -> None:
        """Envoy has said all; a request that is held goes on."""

    def lost(self) -> None:
        if self._ticket is not None:
            self._picker.gateway.abandon(self._ticket)
        if self._task is not None:
            self._task.cancel()

    def _read(self, headers: Mapping[str, str], body: bytes) -> Read | Refusal:
        return self._picker.reader(headers.get(":path", ""), headers, body, self._picker.gateway.core.models)

    async def _when_known(self, headers: Mapping[str, str], body: bytes) -> None:
        """A picker that has just begun does not know its fleets yet: NOT_FOUND would be untrue, and final to clients."""
        try:
            async with asyncio.timeout(KNOW_WAIT_S):
                await self._picker.gateway.knows.wait()
        except TimeoutError:
            self._answer(starting(KNOW_WAIT_S))
        else:
            self._asked(self._read(headers, body))

    def _later(self, answering: Coroutine[Any, Any, None]) -> None:
        self._task = asyncio.create_task(answering)
        self._picker.tasks.add(self._task)
        self._task.add_done_callback(self._picker.tasks.discard)

    def _asked(self, asked: Read | Refusal) -> None:
        gateway = self._picker.gateway
        if isinstance(asked, Refusal):
            self._answer(asked)
        elif asked.abort_of:
            pick, known = gateway.core.abort(asked.fleet, asked.abort_of)
            if known or isinstance(pick, Refusal):
                self._answer(pick)
                return
            self._later(self._abort_everywhere(asked, pick))
        else:
            self._inside_id, self._more = asked.ask.engine_request_id, asked.headers
            answer = gateway.pick(asked.fleet, asked.ask, self._answer)
            if isinstance(answer, Ticket):
                self._ticket = answer
            else:
                self._answer(answer)

    async def _abort_everywhere(self, asked: Read, pick: Pick) -> None:
        await self._picker.aborts.everywhere(asked.fleet, asked.abort_of, but=pick.targets[0].uid)
        self._answer(pick)

    def _answer(self, answer: Pick | Refusal) -> None:
        if isinstance(answer, Refusal) and self._picker.refused is not None and self._inside_id:
            self._picker.refused(self._inside_id, answer)
        if isinstance(answer, Refusal):
            out = immediate(answer).SerializeToString()
        else:
            out = routed(answer, self._grpc_timeout, self._more)
        self._stream.end(out)


def routed(pick: Pick, grpc_timeout: str, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The answer to Envoy that takes the request to its replicas in order."""
    # Envoy counts the header from the arrival, so the time held is added.
    limit_s = pick.fleet.limits.stream_duration_s + STREAM_GRACE_S + pick.held_s
    asked_s = timeout_s(grpc_timeout)
    allowed_s = limit_s if asked_s is None else min(limit_s, asked_s + DEADLINE_MARGIN_S)
    return _sent_on(pick.fleet.key, pick.fleet.model, pick.targets, math.ceil(allowed_s), more)


@lru_cache(maxsize=ANSWERS_MAX)
def _sent_on(
    cluster: str, model: str, targets: tuple[Target, ...], allowed_s: int, more: tuple[tuple[str, str], ...]
) -> bytes:
    common = pb.CommonResponse(clear_route_cache=True)
    add = common.header_mutation.set_headers.add
    pairs = [
        (names.CLUSTER, cluster),
        (names.DESTINATION, ",".join(t.address for t in targets)),
        (names.POD_UIDS, ",".join(t.uid for t in targets)),
        (names.MODEL, model),
        *more,
        # At most 8 digits.
        ("grpc-timeout", f"{min(allowed_s * 1000, 99_999_999)}m"),
    ]
    for name, value in pairs:
        option = add()
        option.header.key, option.header.raw_value = name, value.encode()
        option.append_action = _OVERWRITE
    out = pb.ProcessingResponse(request_headers=pb.HeadersResponse(response=common))
    return bytes(out.SerializeToString())


def timeout_s(text: str) -> float | None:
    """`grpc-timeout`: up to 8 digits and a unit."""
    unit = _TIMEOUT_UNITS_S.get(text[-1:])
    if unit is None or not text[:-1].isdigit():
        return None
    return int(text[:-1]) * unit
