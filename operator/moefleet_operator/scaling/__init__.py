"""How many replicas a fleet needs, and why: `decide(state, sample, now) -> Decision`, a pure function called every 5 s.

Here belong the work law, its guards, what it remembers (`State`), and what tokens cost (`economics`).
Not here: how samples come in (telemetry), who asks and when (core), how replicas are made and drained (planning), and what
one replica can carry (moefleet_perf). `now` is unix seconds, so that a state outlives its process; nothing here asks for it.
"""

from moefleet_operator.scaling.decide import decide
from moefleet_operator.scaling.state import State, remember, resumed, shifted
from moefleet_operator.scaling.types import (
    REASONS,
    Attained,
    Decision,
    DemandPoint,
    DemandTotals,
    Load,
    Policy,
    Queue,
    Reason,
    Sample,
    ServedTotals,
    Supply,
    Terms,
)

__all__ = [
    "REASONS",
    "Attained",
    "Decision",
    "DemandPoint",
    "DemandTotals",
    "Load",
    "Policy",
    "Queue",
    "Reason",
    "Sample",
    "ServedTotals",
    "State",
    "Supply",
    "Terms",
    "decide",
    "remember",
    "resumed",
    "shifted",
]
