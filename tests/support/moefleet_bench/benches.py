"""All benches, in the order in which they run."""

from __future__ import annotations

from .gateway import GATEWAY_BENCHES
from .operator import OPERATOR
from .replay import REPLAY
from .report import Bench

BENCHES: tuple[Bench, ...] = (OPERATOR, *REPLAY, *GATEWAY_BENCHES)
