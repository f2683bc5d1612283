"""All benches, in the order in which they run."""

from __future__ import annotations

from .fidelity import FIDELITY
from .first_token import FIRST_TOKEN
from .gateway import GATEWAY_BENCHES
from .operator import OPERATOR
from .replay import REPLAY
from .report import Bench
from .server import SERVER
from .torch_streams import TORCH_STREAMS

BENCHES: tuple[Bench, ...] = (
    OPERATOR,
    *REPLAY,
    *FIDELITY,
    *GATEWAY_BENCHES,
    *SERVER,
    FIRST_TOKEN,
    TORCH_STREAMS,
)
