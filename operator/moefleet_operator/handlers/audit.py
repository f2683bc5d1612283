"""Is a watch dead? kopf hides bookmarks and a quiet watch looks like a dead one, so what a LIST knows is waited for.

A LIST is newer than what the watch has delivered by moments at most. What it knows and the watch has not delivered
DEAD_AFTER_S later, nor anything newer, the watch will not deliver: the process is unhealthy and is started anew.

A deletion is not waited for: kopf lists anew after an outage or a 410 and says of no object that it is gone. The LIST
has told the core of it, and the next thing that is made or changed shows whether the watch lives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from moefleet_operator.core.events import Key, Kind

# kopf reconnects within a second; an API server that is slower than this has problems that we share.
DEAD_AFTER_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class _Owed:
    # The watch owes this resourceVersion, or anything newer.
    version: int
    since: float


class WatchAudit:
    def __init__(self, *, by_namespace: bool = False) -> None:
        """by_namespace: a kind has a watch in each of several namespaces, so one of them says nothing about another."""
        self._by_namespace = by_namespace
        self._delivered: dict[Kind, dict[Key, int]] = {}
        self._owed: dict[Kind, dict[Key, _Owed]] = {}
        # How many the last LIST had, and of which kinds a watch has brought anything.
        self._there: dict[Kind, int] = {}
        self._heard: set[Kind] = set()

    def delivered(self, kind: Kind, key: Key, version: int | None) -> None:
        """A watch event; None: the object is gone."""
        self._heard.add(kind)
        seen = self._delivered.setdefault(kind, {})
        if version is None:
            seen.pop(key, None)
        else:
            seen[key] = version
        owed = self._owed.get(kind, {})
        if version is None:
            owed.pop(key, None)
            return
        # A watch brings things in their order, so what is older and has not come is not what it was any more.
        paid = [k for k, o in owed.items() if o.version <= version and self._one_watch(k, key)]
        for k in paid:
            del owed[k]

    def _one_watch(self, a: Key, b: Key) -> bool:
        return not self._by_namespace or a.namespace == b.namespace

    def counted(self, kind: Kind, objects: int) -> None:
        """A full LIST, also one from before the watch."""
        self._there[kind] = objects

    def silent(self, kind: Kind) -> bool:
        """There are such objects, and the watch has not brought one yet: it has not been opened."""
        return self._there.get(kind, 0) > 0 and kind not in self._heard

    def listed(self, kind: Kind, versions: Iterable[tuple[Key, int]], as_of: int, now: float) -> None:
        """A full LIST as of that resourceVersion."""
        seen = self._delivered.setdefault(kind, {})
        before = self._owed.get(kind, {})
        there = dict(versions)
        # Gone before the LIST. What the watch delivered after `as_of` is news to the LIST.
        for key in [key for key, version in seen.items() if key not in there and version <= as_of]:
            del seen[key]
        self._owed[kind] = {
            # What was owed at the last LIST already has been for that long.
            key: _Owed(version, before[key].since if key in before else now)
            for key, version in there.items()
            if seen.get(key, -1) < version
        }

    def behind_s(self, kind: Kind, now: float) -> float:
        return max((now - owed.since for owed in self._owed.get(kind, {}).values()), default=0.0)

    def dead(self, now: float) -> str | None:
        """A sentence about the first watch that is dead; None when all live."""
        for kind in self._owed:
            behind_s = self.behind_s(kind, now)
            if behind_s > DEAD_AFTER_S:
                key = max(self._owed[kind], key=lambda k: now - self._owed[kind][k].since)
                return (
                    f"the watch of {kind} is dead: a LIST has known {key} as it is now for {behind_s:.0f} s, "
                    f"more than {DEAD_AFTER_S:.0f} s"
                )
        return None


def version_of(raw: Any) -> int:
    """resourceVersions of one kind may be compared as numbers (Kubernetes 1.35 promises it; etcd always had it so)."""
    try:
        return int((raw.get("metadata") or {}).get("resourceVersion") or 0)
    except ValueError:
        return 0
