"""KV cache events as a view of what is cached, kept whole or thrown away.

The engine's buffer is bounded and drops what it has no room for: after a gap in the event ids nothing that was known is
certain, and the view starts again. Ids count per rank under attention data parallelism.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class CacheView:
    # Hashes of cached blocks, by rank (0 without attention data parallelism).
    blocks: dict[int, set[int]] = field(default_factory=dict)
    gaps_total: int = 0
    stored_total: int = 0
    removed_total: int = 0
    _next_id: dict[int, int] = field(default_factory=dict)

    def absorb(self, event: Mapping[str, Any]) -> bool:
        """Whether events before it are missing. Unknown types and keys are of other versions."""
        rank = int(event.get("attention_dp_rank") or 0)
        known = self.blocks.setdefault(rank, set())
        number = int(event["event_id"])
        gap = number != self._next_id.get(rank, number)
        if gap:
            self.gaps_total += 1
            known.clear()
        self._next_id[rank] = number + 1
        data = event.get("data") or {}
        match data.get("type"):
            case "created":
                known.clear()
            case "stored":
                hashes = [int(block["block_hash"]) for block in data.get("blocks") or ()]
                known.update(hashes)
                self.stored_total += len(hashes)
            case "removed":
                hashes = [int(each) for each in data.get("block_hashes") or ()]
                known.difference_update(hashes)
                self.removed_total += len(hashes)
            case _:
                pass
        return gap
