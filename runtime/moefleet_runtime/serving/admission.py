"""Who may come in, who is inside, and how they are all sent home.

Every request passes `check`, then `enter`; what it entered it leaves, however it ends. The counts here are the truth
about running streams that draining waits for: the engine's own numbers are a moment old.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from moefleet_runtime.host.stream import StreamFault, TokenStream
from moefleet_runtime.life import Life
from moefleet_runtime.serving.problems import RETRY_FULL_S, Problem, full, refusal

POD_UIDS_HEADER: Final = "x-moefleet-pod-uids"
MODEL_HEADER: Final = "x-moefleet-model"
# How long a client may take none of what is sent to it. HTTP/2 gives it 64 KiB ahead, thousands of tokens: whoever needs longer is not
# reading, and holds a place, its part of the cache, and at the end the drain.
MAX_WRITE_S: Final = 120.0
# The same once its answer is over or was cut: nothing more comes, and somebody may wait for its place.
MAX_LAST_WRITE_S: Final = 5.0

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(slots=True, eq=False)
class Guest:
    """One running request."""

    request_id: str
    entered_s: float
    stream: TokenStream | None = None
    # Another replica ends its answer when this one cannot.
    movable: bool = False
    # Of its handler, and since when it waits for its client to make room for a message; None: it does not.
    task: asyncio.Task[Any] | None = None
    writing_since_s: float | None = None


class Admission:
    def __init__(
        self,
        *,
        pod_uid: str,
        model_name: str,
        queued_requests: int,
        life: Callable[[], Life],
        on_change: Callable[[int], None],
    ) -> None:
        self._pod_uid = pod_uid
        self._model_name = model_name
        self._queued_requests = queued_requests
        self._life = life
        self._on_change = on_change
        self._guests: dict[str, Guest] = {}
        # Requests inside at once; known when the engine has started.
        self.places = 1
        self.admitted_total = 0
        # Requests answered with x-moefleet-refused, by its value.
        self.refused: Counter[str] = Counter()
        self.cut_total = 0

    @property
    def inside(self) -> int:
        return len(self._guests)

    @property
    def refused_total(self) -> int:
        """As LoadSample counts: because of draining or a wrong uid or model."""
        return self.refused["draining"] + self.refused["wrong-pod"] + self.refused["wrong-model"]

    def oldest_s(self, now_s: float) -> float:
        # The first entered is the first in the dictionary.
        first = next(iter(self._guests.values()), None)
        return 0.0 if first is None else now_s - first.entered_s

    def check_address(self, metadata: Metadata) -> None:
        """Raises a refusal when the sender meant another pod or another model: addresses get new owners."""
        for name, value in metadata:
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            if name == POD_UIDS_HEADER:
                if self._pod_uid not in (uid.strip() for uid in text.split(",")):
                    raise self._refuse(
                        refusal(
                            "wrong-pod",
                            f"this is pod {self._pod_uid or '(no uid)'}, the request is for {text}",
                            podUid=self._pod_uid,
                        )
                    )
            elif name == MODEL_HEADER and text != self._model_name:
                raise self._refuse(
                    refusal(
                        "wrong-model",
                        f"this replica serves {self._model_name}, the request is for {text}",
                        model=self._model_name,
                    )
                )

    def check(self, metadata: Metadata) -> None:
        """Raises a refusal unless this replica takes new work, and this request is meant for it."""
        self.check_address(metadata)
        life = self._life()
        if life.takes_work:
            return
        state = life.state.name
        if life.drain and not life.failure:
            raise self._refuse(refusal("draining", f"this replica {life.explanation}", state=state))
        raise self._refuse(
            refusal("not-serving", f"this replica does not serve: {life.explanation}", state=state)
        )

    def enter(self, request_id: str) -> Guest:
        """Raises when the id runs already, or when nobody more fits in (the engine itself bounds its queue sooner)."""
        if request_id in self._guests:
            raise Problem(
                grpc.StatusCode.ALREADY_EXISTS,
                "REQUEST_ID_RUNS",
                f"request_id {request_id!r} runs already; ids are unique among running requests",
            )
        if self.inside >= self.places:
            raise self.refuse_full(f"{self.inside} requests are inside already")
        guest = Guest(request_id, time.monotonic())
        self._guests[request_id] = guest
        self.admitted_total += 1
        self._on_change(self.inside)
        return guest

    def leave(self, guest: Guest) -> None:
        if self._guests.get(guest.request_id) is guest:
            del self._guests[guest.request_id]
            self._on_change(self.inside)

    def find(self, request_id: str) -> Guest | None:
        return self._guests.get(request_id)

    def refuse_full(self, text: str) -> Problem:
        return self._refuse(full(f"the queue is full: {text}", self._queued_requests))

    def cut(self, why: str) -> int:
        """Ends every stream that still runs. The promise is broken to those whose answer nobody ends: they are counted, and
        returned as a number."""
        running = [g for g in self._guests.values() if g.stream is None or not g.stream.ended]
        for guest in running:
            if guest.stream is not None:
                guest.stream.end(StreamFault("cut", why))
        cut = sum(not guest.movable for guest in running)
        self.cut_total += cut
        return cut

    def end_stalled(self, now_s: float) -> list[str]:
        """Ends the calls of those who do not read what they asked for; their request ids."""
        stalled = [g for g in self._guests.values() if g.writing_since_s is not None and _stalls(g, now_s)]
        for guest in stalled:
            if guest.task is not None:
                guest.task.cancel()
        return [guest.request_id for guest in stalled]

    def _refuse(self, problem: Problem) -> Problem:
        if problem.refused:
            self.refused[problem.refused] += 1
        return problem


def _stalls(guest: Guest, now_s: float) -> bool:
    over = guest.stream is not None and guest.stream.ended
    return now_s - (guest.writing_since_s or now_s) > (MAX_LAST_WRITE_S if over else MAX_WRITE_S)


class Places:
    """For calls that are no requests: so many of one kind at once, and the next one is refused."""

    def __init__(self, most: int, what: str) -> None:
        self._most = most
        self._what = what
        self._taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        if self._taken >= self._most:
            text = f"{self._taken} {self._what} run already, as many as this replica takes at once"
            raise Problem(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_CALLS",
                text,
                retry_after_s=RETRY_FULL_S,
                quota=(self._what, text),
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
