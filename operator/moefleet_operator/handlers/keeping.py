"""What scaling has learnt outlives the process: one ConfigMap a fleet, written every five minutes and at the end.

Two keys: `state` (at most 4 KiB), and `decisions`, the last ones with their terms for `moefleet explain`, one JSON object a line.
Read once when a leader first meets a fleet; gateways replay the last hour of demand besides. Nothing waits for either: a memory
that cannot be read is no memory, and one that cannot be written costs only what it would have remembered.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog

from moefleet_operator import names
from moefleet_operator.api import API_VERSION
from moefleet_operator.core.effects import FIELD_MANAGER
from moefleet_operator.core.events import Json, Key
from moefleet_operator.kube.clock import Clock
from moefleet_operator.kube.limits import WRITE_TIMEOUT_S
from moefleet_operator.kube.outcomes import error_text
from moefleet_operator.kube.resources import CONFIG_MAPS
from moefleet_operator.kube.wire import NoAnswerError, NotConnectedError, Request, Response, Transport
from moefleet_operator.scaling import Decision, State

# What is lost when a process dies is at most this; a thousand fleets make three writes a second.
SAVE_EVERY_S: Final = 300.0
# How often it is looked whether something is to read or to write.
LOOK_EVERY_S: Final = 1.0
# Requests at a time, and for all that is left at the end.
AT_ONCE: Final = 4
LAST_SAVES_S: Final = 5.0
STATE_KEY: Final = "state"
DECISIONS_KEY: Final = "decisions"
# Changes of target or reason: half a day to two of them, 100 KB.
MAX_DECISIONS: Final = 200

log = structlog.get_logger("moefleet_operator.scaling")


@dataclass(slots=True)
class _Kept:
    uid: str
    # Read (or found to be missing or unreadable): until then nothing is written over it.
    read: bool = False
    found: State | None = None
    latest: State | None = None
    saved: State | None = None
    # Lines, oldest first.
    decisions: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_DECISIONS))
    due_s: float = 0.0
    problem: str = ""


class StateKeeper:
    """`recall` and `keep` return at once; `run` does the I/O until it is cancelled, and then saves what is unsaved."""

    def __init__(self, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._fleets: dict[Key, _Kept] = {}

    def recall(self, fleet: Key, uid: str) -> tuple[bool, State | None]:
        """Whether it is known what was kept, and what: None when nothing was. The first call asks for it."""
        kept = self._fleets.get(fleet)
        if kept is None or kept.uid != uid:
            kept = self._fleets[fleet] = _Kept(uid)
        return kept.read, kept.found

    def keep(self, fleet: Key, state: State) -> None:
        if kept := self._fleets.get(fleet):
            kept.latest = state

    def note(self, fleet: Key, before: int, decision: Decision, wall: float) -> None:
        """A decision that says something new; `before` is the target that it found."""
        if kept := self._fleets.get(fleet):
            kept.decisions.append(line(before, decision, wall))

    def forget(self, fleet: Key) -> None:
        """The fleet is gone (its ConfigMap goes with it), or another process leads now."""
        self._fleets.pop(fleet, None)

    async def run(self) -> None:
        try:
            while True:
                await self._each(self._read, lambda kept: not kept.read)
                await self._each(self._save, self._due)
                await self._clock.sleep(LOOK_EVERY_S)
        finally:
            # Cancelled: the Lease is given back or about to be. Who leads next reads this.
            last = asyncio.ensure_future(self._each(self._save, _unsaved))
            await asyncio.wait({last}, timeout=LAST_SAVES_S)

    def _due(self, kept: _Kept) -> bool:
        return _unsaved(kept) and kept.due_s <= self._clock.now()

    async def _each(self, work: Callable[[Key, _Kept], Any], when: Callable[[_Kept], bool]) -> None:
        due = [(fleet, kept) for fleet, kept in self._fleets.items() if when(kept)]
        for first in range(0, len(due), AT_ONCE):
            await asyncio.gather(*(work(fleet, kept) for fleet, kept in due[first : first + AT_ONCE]))

    async def _read(self, fleet: Key, kept: _Kept) -> None:
        path = CONFIG_MAPS.path(fleet.namespace, names.scaling_memory(fleet.name))
        response = await self._send(fleet, kept, Request(verb="GET", path=path, timeout_s=WRITE_TIMEOUT_S))
        if response is not None and response.ok and _owner_uid(response.body) == kept.uid:
            data = response.body.get("data") or {}
            kept.found = State.from_json(str(data.get(STATE_KEY, "")))
            noted = list(kept.decisions)
            kept.decisions.clear()
            kept.decisions.extend([*str(data.get(DECISIONS_KEY, "")).splitlines(), *noted])
        kept.read = True
        # Not all fleets at once after a restart.
        kept.due_s = self._clock.now() + SAVE_EVERY_S * ((hash(kept.uid) % 64 + 64) / 128)

    async def _save(self, fleet: Key, kept: _Kept) -> None:
        state = kept.latest
        if state is None:
            return
        request = Request(
            verb="PATCH",
            path=CONFIG_MAPS.path(fleet.namespace, names.scaling_memory(fleet.name)),
            query=(("fieldManager", FIELD_MANAGER), ("force", "true")),
            body=config_map(fleet, kept.uid, state, kept.decisions),
            content_type="application/apply-patch+yaml",
            timeout_s=WRITE_TIMEOUT_S,
        )
        kept.due_s = self._clock.now() + SAVE_EVERY_S
        if await self._send(fleet, kept, request) is not None:
            kept.saved = state

    async def _send(self, fleet: Key, kept: _Kept, request: Request) -> Response | None:
        """None: not done, which is logged once until it is done again."""
        try:
            response = await self._transport.send(request)
            problem = "" if response.ok or response.status == 404 else error_text(response)
        except (NotConnectedError, NoAnswerError) as error:
            response, problem = None, str(error)
        if problem and problem != kept.problem:
            log.warning("ScalingMemory", fleet=str(fleet), verb=request.verb, message=problem)
        kept.problem = problem
        return None if problem else response


def line(before: int, decision: Decision, wall: float) -> str:
    said: Json = {
        "at": round(wall, 1),
        "from": before,
        "to": decision.replicas,
        "reason": str(decision.reason),
        "message": decision.message,
        # Four digits and no zeros: a line stays below 600 bytes.
        "terms": {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in decision.terms.as_dict().items()
            if value
        },
    }
    return json.dumps(said, separators=(",", ":"))


def config_map(fleet: Key, uid: str, state: State, decisions: Iterable[str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.scaling_memory(fleet.name),
            "namespace": fleet.namespace,
            "labels": names.child_labels(fleet.name),
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": "MoEFleet",
                    "name": fleet.name,
                    "uid": uid,
                    "controller": True,
                }
            ],
        },
        "data": {STATE_KEY: state.to_json(), DECISIONS_KEY: "\n".join(decisions)},
    }


def _unsaved(kept: _Kept) -> bool:
    return kept.read and kept.latest is not None and kept.latest is not kept.saved


def _owner_uid(body: Json) -> str:
    metadata: Any = body.get("metadata") or {}
    owners = metadata.get("ownerReferences") or []
    return str(owners[0].get("uid", "")) if owners and isinstance(owners[0], dict) else ""
