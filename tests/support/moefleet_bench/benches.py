"""All benches, in the order in which they run."""

from __future__ import annotations

from .gateway import GATEWAY_BENCHES
from .operator import OPERATOR
from .report import Bench

BENCHES: tuple[Bench, ...] = (OPERATOR, *GATEWAY_BENCHES)
