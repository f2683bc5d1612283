"""Production traces, recorded demand and synthetic shapes, made into requests: everything that `moefleet replay` can be fed with.

A trace that gives rates (ServeGen, synthetic) is made into requests by `generation`; one that gives requests (Azure, Mooncake,
BurstGPT, Qwen-Bailian) is replayed as it is, thinned or replicated, never compressed in time. Bad input is a `TraceError` that
names the row or the field; what had to be assumed is in `warnings`.
"""

from moefleet_replay.traces.servegen import open_servegen
from moefleet_replay.traces.source import ArrivalShape, TraceError, TraceSource, fingerprint
from moefleet_replay.traces.spec import KINDS, TraceSpec, open_trace, parse_days
from moefleet_replay.traces.synthetic import SHAPES

__all__ = [
    "KINDS",
    "SHAPES",
    "ArrivalShape",
    "TraceError",
    "TraceSource",
    "TraceSpec",
    "fingerprint",
    "open_servegen",
    "open_trace",
    "parse_days",
]
