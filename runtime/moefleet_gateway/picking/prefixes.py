"""Which replica need not compute how much of a prompt, as far as this picker knows.

Two sources, one table. **Reports**: replicas whose engine knows its cache tell hashes of token prefixes that came and went
(`WatchLoad`). **Own picks**: whoever got a prompt will have it a moment later; for texts, whose tokens nobody here has, that is
all there is. Own picks of token ids count for FRESH_S where the replica reports, and after that its report alone counts.

cost(replica) = outstanding work + (prompt tokens - expected hit) [+ the output, the same everywhere]
expected hit  = tokens of the longest known prefix there x trust

`trust` is learnt per fleet from usage: cached tokens that came over those that were expected. Where nothing is ever reused
(reuse off, caches too small) it falls to nothing, and picks are what they are without this table. An empty table is that too.
A replica with the prefix is left as soon as its queue is longer by more than the hit saves, so that a prefix that everybody
shares spreads to as many replicas as its load needs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

# Of all fleets together, the longest unused go first. 100,000 are 6,000 prompts of 1,000 tokens, and at most 50 MB.
HASHES_MAX = 100_000
# Replicas of one hash: more hold a prefix that everybody shares, and then any will do.
HOLDERS_MAX = 32
# From our pick until the replica's report can show it: prefill, the engine's look and two intervals of samples.
FRESH_S = 10.0
# A hit on less of the prompt than this is a template that all prompts begin with: following it would bring every idle
# moment's requests to one replica, whose cache then drops what the others have room for.
HIT_SHARE_MIN = 0.125
_REPORTED = float("inf")


@dataclass(slots=True)
class PrefixIndex:
    """Hash -> who has it. Replicas are numbered anew each time they are heard of again: forgetting one is O(1), and what is
    left of it in the table is swept out by the next who touches the hash."""

    hashes_max: int = HASHES_MAX
    # Of each holder: when we picked it, or _REPORTED.
    _holders: OrderedDict[int, dict[int, float]] = field(default_factory=OrderedDict)
    _number_of: dict[str, int] = field(default_factory=dict)
    _uid_of: dict[int, str] = field(default_factory=dict)
    _reporting: set[int] = field(default_factory=set)
    _next: int = 0

    def __len__(self) -> int:
        return len(self._holders)

    def report(self, uid: str, reset: bool, stored: Iterable[int], removed: Iterable[int]) -> None:
        if reset:
            self.forget(uid)
        number = self._number(uid)
        self._reporting.add(number)
        for mark in stored:
            self._hold(mark, number, _REPORTED)
        for mark in removed:
            holders = self._holders.get(mark)
            if holders is not None and holders.pop(number, None) is not None and not holders:
                del self._holders[mark]

    def forget(self, uid: str) -> None:
        """It is gone, or what it has is not known any more."""
        number = self._number_of.pop(uid, None)
        if number is not None:
            del self._uid_of[number]
            self._reporting.discard(number)

    def picked(self, uid: str, marks: Sequence[int], now: float) -> None:
        number = self._number(uid)
        for mark in marks:
            self._hold(mark, number, now)

    def hits(
        self, marks: Sequence[int], uids: Collection[str], *, tokens: bool, now: float
    ) -> dict[str, int]:
        """How many of `marks`, from the first, each replica has; those that have none are left out.

        `tokens`: marks are of token ids, of which a replica that reports knows better than we.
        """
        found: dict[str, int] = {}
        table, uid_of, reporting = self._holders, self._uid_of, self._reporting
        for count in range(len(marks), 0, -1):
            holders = table.get(marks[count - 1])
            if holders is None:
                continue
            for number, at in holders.items():
                uid = uid_of.get(number)
                if uid is None or uid in found or uid not in uids:
                    continue
                if tokens and number in reporting and at + FRESH_S < now:
                    continue
                found[uid] = count
            if len(found) == len(uids):
                break
        return found

    def _number(self, uid: str) -> int:
        number = self._number_of.get(uid)
        if number is None:
            number = self._next
            self._next += 1
            self._number_of[uid] = number
            self._uid_of[number] = uid
        return number

    def _hold(self, mark: int, number: int, at: float) -> None:
        holders = self._holders.get(mark)
        if holders is None:
            self._holders[mark] = {number: at}
            if len(self._holders) > self.hashes_max:
                self._holders.popitem(last=False)
            return
        self._holders.move_to_end(mark)
        known = holders.get(number)
        if known is not None:
            if at > known:
                holders[number] = at
            return
        for other in [n for n in holders if n not in self._uid_of]:
            del holders[other]
        if len(holders) < HOLDERS_MAX:
            holders[number] = at
