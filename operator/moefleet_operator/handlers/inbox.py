"""Events on their way to the core: urgent ones first, and of one object only what is newest, so it cannot grow without end."""

from __future__ import annotations

import asyncio
from collections import deque

from moefleet_operator.core.events import Event, Key, Kind, ObjectChanged, Relisted, Synced, TelemetryUpdate


class Inbox:
    """Of the event loop's thread only; others use `loop.call_soon_threadsafe(inbox.put, event)`.

    Bounded by what exists: one entry for each object watched (two while a new one has the name of one that is gone),
    one answer for each effect under way, one tick.
    """

    def __init__(self) -> None:
        # Answers, ticks and the end: a renewal of the Lease must not wait behind ten thousand pods.
        self._urgent: deque[Event] = deque()
        self._facts: deque[Event | _Slot] = deque()
        self._slots: dict[tuple[Kind, Key], _Slot] = {}
        self._filled = asyncio.Event()

    def put(self, event: Event) -> None:
        match event:
            case ObjectChanged():
                self._put_object(event)
            case Relisted() | Synced() | TelemetryUpdate():
                self._facts.append(event)
            case _:
                self._urgent.append(event)
        self._filled.set()

    async def get(self) -> Event:
        """Yields to other tasks only when it is empty."""
        while not self:
            self._filled.clear()
            await self._filled.wait()
        return self.get_nowait()

    def get_nowait(self) -> Event:
        if self._urgent:
            return self._urgent.popleft()
        event = self._facts.popleft()
        if isinstance(event, _Slot):
            if self._slots.get(event.at) is event:
                del self._slots[event.at]
            return event.newest
        return event

    def __len__(self) -> int:
        return len(self._urgent) + len(self._facts)

    def _put_object(self, event: ObjectChanged) -> None:
        at = (event.kind, event.key)
        slot = self._slots.get(at)
        # A deletion is never overwritten: what comes after it is another object.
        if slot is not None and slot.newest.object is not None:
            slot.newest = event
            return
        slot = _Slot(at, event)
        self._slots[at] = slot
        self._facts.append(slot)


class _Slot:
    __slots__ = ("at", "newest")

    def __init__(self, at: tuple[Kind, Key], newest: ObjectChanged) -> None:
        self.at = at
        self.newest = newest
