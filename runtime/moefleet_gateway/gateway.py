"""The one object that joins the pure core to the world: clock, tickets that wait, Envoy's acknowledgements."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable, Mapping

import structlog

from moefleet_gateway.ads import AdsServicer
from moefleet_gateway.picking.core import Ask, Core, End, Pick, Ticket
from moefleet_gateway.picking.endpoints import State
from moefleet_gateway.picking.facts import Fleet, Load, Replica
from moefleet_gateway.picking.refusals import Refusal
from moefleet_gateway.settings import REPLICA_SILENCE_S

log = structlog.get_logger()

# Endpoints and flights that are over are looked for this often; it is the finest step of a drain's end.
SWEEP_EVERY_S = 0.25


class Gateway:
    """Implements ads.Registrar and watching.World."""

    def __init__(
        self, gateway_uid: str, hold_max_s: float, replica_silence_s: float = REPLICA_SILENCE_S
    ) -> None:
        self.gateway_uid = gateway_uid
        self.incarnation = uuid.uuid4().hex
        # Gateways that see the same loads must not all start with the same replica.
        self.core = Core(hold_max_s, turn=int(self.incarnation[:8], 16))
        self.ads = AdsServicer(self, self.incarnation[:8], replica_silence_s)
        self.synced = False  # sources listed everything and every load stream had its chance
        # The same, to wait for: before it, a fleet that is not known may be there all the same.
        self.knows = asyncio.Event()
        self.draining = False
        self.load_wanted: Callable[[Replica], None] = lambda replica: None
        self.load_unwanted: Callable[[str], None] = lambda uid: None
        # A fleet without a replica was called: whoever counts the demand tells it at once.
        self.called = asyncio.Event()
        self._waiters: dict[int, Callable[[Pick | Refusal], None]] = {}
        self._pump_soon = False
        self._expiry: asyncio.TimerHandle | None = None
        self._changes: set[asyncio.Event] = set()

    @staticmethod
    def now() -> float:
        return time.monotonic()

    @property
    def ready(self) -> bool:
        """A full sync that Envoy acknowledged."""
        return self.synced and self.core.endpoints.acknowledged > 0 and not self.draining

    # --- requests ---

    def pick(
        self, fleet: Fleet, ask: Ask, later: Callable[[Pick | Refusal], None]
    ) -> Pick | Refusal | Ticket:
        """A ticket says that the request is held: then `later` gets its answer, unless it is abandoned before."""
        answer = self.core.arrive(fleet, ask, self.now())
        if not isinstance(answer, Pick) and self.core.newly_called():
            self.called.set()
        if isinstance(answer, Ticket):
            self._waiters[answer.number] = later
            self._plan_expiry()
        return answer

    def abandon(self, ticket: Ticket) -> None:
        """Its client is gone, or its deadline came. Nothing happens when it was answered already."""
        if self._waiters.pop(ticket.number, None) is not None:
            self.core.abandon(ticket)

    def finish(self, end: End) -> None:
        self.core.finish(end, self.now())
        self._pump_later()

    # --- watching.World ---

    def put_fleets(self, fleets: Iterable[Fleet]) -> None:
        self.core.set_fleets(fleets, self.now())
        self._changed()

    def put_replica(self, replica: Replica) -> None:
        self._log_step(replica.uid, self.core.set_replica(replica, self.now()))
        self.load_wanted(replica)
        self._changed()

    def drop_replica(self, uid: str) -> None:
        self._log_step(uid, self.core.drop_replica(uid, self.now()))
        self.load_unwanted(uid)
        self._changed()

    def put_load(self, uid: str, load: Load | None) -> None:
        step = self.core.set_load(uid, load, self.now())
        if step is not None:
            self._log_step(uid, step)
            self._changed()
        else:
            self._pump_later()

    def put_prefixes(self, uid: str, reset: bool, stored: Iterable[int], removed: Iterable[int]) -> None:
        self.core.prefixes.report(uid, reset, stored, removed)

    # --- ads.Registrar ---

    def desired(self) -> tuple[int, Mapping[str, tuple[str, ...]]] | None:
        if not self.synced:
            return None
        endpoints = self.core.endpoints
        return endpoints.version, endpoints.clusters(self.core.models.by_key)

    def confirmed(self, version: int) -> None:
        before = self.core.endpoints.acknowledged
        fresh = self.core.endpoints.acknowledge(version)
        for entry in fresh:
            log.info(
                "endpoint_registered",
                pod=entry.replica.name,
                fleet=entry.replica.fleet,
                uid=entry.replica.uid,
            )
        if fresh or version != before:
            self._notify()
            self._pump_later()

    def disconnected(self) -> None:
        self.core.endpoints.envoy_lost()
        self._notify()

    # --- who listens for changes of endpoints ---

    def subscribe(self) -> asyncio.Event:
        event = asyncio.Event()
        event.set()
        self._changes.add(event)
        return event

    def unsubscribe(self, event: asyncio.Event) -> None:
        self._changes.discard(event)

    def endpoint_states(self) -> dict[str, tuple[bool, int]]:
        """(registered, in flight) by pod uid; offered ones are not there yet."""
        return {
            uid: (entry.state is State.REGISTERED, entry.in_flight())
            for uid, entry in self.core.endpoints.by_uid.items()
            if entry.state is not State.OFFERED
        }

    # --- inside ---

    def mark_synced(self) -> None:
        self.synced = True
        self.knows.set()
        self._changed()

    def sweep(self) -> None:
        gone = self.core.sweep(self.now())
        for uid in gone:
            log.info("endpoint_gone", uid=uid)
        if gone:
            self._changed()
        self._pump_later()

    def _changed(self) -> None:
        self.ads.notify()
        self._notify()
        self._pump_later()

    def _notify(self) -> None:
        for event in self._changes:
            event.set()

    def _log_step(self, uid: str, step: str | None) -> None:
        if step is None:
            return
        entry = self.core.endpoints.by_uid.get(uid)
        log.info(
            f"endpoint_{step}",
            uid=uid,
            pod=entry.replica.name if entry else "",
            fleet=entry.replica.fleet if entry else "",
            reason=entry.reason if entry else "",
        )

    def _pump_later(self) -> None:
        """Joins many events of one turn of the loop into one look at the queues."""
        if self._waiters and not self._pump_soon:
            self._pump_soon = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_soon = False
        for number, answer in self.core.pump(self.now()):
            later = self._waiters.pop(number, None)
            if later is not None:
                later(answer)
        self._plan_expiry()

    def _plan_expiry(self) -> None:
        at = self.core.next_expiry_s()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        if at is not None:
            delay_s = max(0.0, at - self.now()) + 0.001
            self._expiry = asyncio.get_running_loop().call_later(delay_s, self._pump)
