"""Which prefixes this engine has, as pickers name them: stored as answers begin, removed as KV cache events say.

Events name blocks by the engine's own hashes and carry the tokens of a block but not the tenant's salt; requests carry both.
So what was asked says what came in, under its salt, and what an event removes takes away every salt's prefix of those tokens:
understated at worst. Under attention data parallelism each rank has a cache of its own: a prefix is held while one rank has it.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from moefleet_perf.prefixes import MARK_TOKENS, token_marks

from moefleet_runtime.engine.prefixes import PrefixChanges, PrefixLog

# Of all ranks: 350 bytes each in this process. What lies behind is not followed, and then believed until the next gap.
MAX_BLOCKS: Final = 400_000


class _Block(NamedTuple):
    parent: int | None
    tokens: array[int]
    # Tokens of the prompt up to its end.
    end: int
    # Prefixes that end in it, without a salt.
    marks: tuple[int, ...]


class AskedPrefixes:
    """`asked` and `absorb` come from different threads."""

    def __init__(self) -> None:
        self._log = PrefixLog()
        self._lock = threading.Lock()
        self._blocks: dict[int, dict[int, _Block]] = {}
        # Without a salt -> as they were asked for.
        self._asked: dict[int, set[int]] = {}
        # How many ranks hold it.
        self._held: Counter[int] = Counter()

    def drain(self) -> PrefixChanges:
        return self._log.drain()

    def asked(self, prompt: Sequence[int], salt: str) -> None:
        """The prompt is computed: a prompt that begins alike finds it."""
        marks = token_marks(prompt, salt)
        plain = token_marks(prompt) if salt else marks
        with self._lock:
            for bare, mark in zip(plain, marks, strict=True):
                self._asked.setdefault(bare, set()).add(mark)
        self._log.stored(marks)

    def absorb(self, event: Mapping[str, Any], *, lost: bool) -> None:
        """`lost`: events before this one are missing, so nothing of its rank is certain."""
        rank = int(event.get("attention_dp_rank") or 0)
        data = event.get("data") or {}
        with self._lock:
            if lost or data.get("type") == "created":
                self._forget()
            blocks = self._blocks.setdefault(rank, {})
            match data.get("type"):
                case "stored":
                    parent = data.get("parent_hash")
                    for block in data.get("blocks") or ():
                        self._store(blocks, None if parent is None else int(parent), block)
                        parent = int(block["block_hash"])
                case "removed":
                    for each in data.get("block_hashes") or ():
                        self._remove(blocks, int(each))
                case _:
                    pass

    def _forget(self) -> None:
        # All ranks: which of them the asked prefixes are on is not known.
        self._blocks.clear()
        self._asked.clear()
        self._held.clear()
        self._log.clear()

    def _store(self, blocks: dict[int, _Block], parent: int | None, said: Mapping[str, Any]) -> None:
        number = int(said["block_hash"])
        before = blocks.get(parent) if parent is not None else None
        if number in blocks or (parent is not None and before is None) or self._full():
            return
        tokens = array("I", (int(token["token_id"]) for token in said.get("tokens") or ()))
        start = before.end if before is not None else 0
        end = start + len(tokens)
        ending = [i for i, length in enumerate(MARK_TOKENS) if start < length <= end]
        marks: tuple[int, ...] = ()
        if ending:
            marks = token_marks(_prompt(blocks, before, tokens))[ending[0] :]
        blocks[number] = _Block(parent, tokens, end, marks)
        self._held.update(marks)

    def _remove(self, blocks: dict[int, _Block], number: int) -> None:
        block = blocks.pop(number, None)
        if block is None:
            return
        for bare in block.marks:
            self._held[bare] -= 1
            if self._held[bare] <= 0:
                del self._held[bare]
                self._log.removed(self._asked.pop(bare, ()))

    def _full(self) -> bool:
        return sum(len(blocks) for blocks in self._blocks.values()) >= MAX_BLOCKS


def _prompt(blocks: Mapping[int, _Block], before: _Block | None, last: array[int]) -> array[int]:
    """All tokens up to the end of the newest block."""
    parts = [last]
    while before is not None:
        parts.append(before.tokens)
        before = blocks.get(before.parent) if before.parent is not None else None
    out: array[int] = array("I")
    for part in reversed(parts):
        out += part
    return out
