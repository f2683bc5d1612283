"""What a replica can carry, as arithmetic: step time, closed-form capacity, a replica in virtual time, an online fit.

Everybody may import it: the operator sizes fleets by it, the Simulated engine makes tokens at its speed, the replay runs it.
It is pure: nothing here asks for the time, draws a number or opens a socket. Calibrations are data files in `calibrations/`.
Units: seconds, tokens, requests; one replica is the whole pod with all its GPUs, so limits are sums over its ranks.
What a fleet should do about it belongs to `moefleet_operator.scaling`; what an engine really does, to `moefleet_runtime`.
"""

from moefleet_perf.calibration import (
    EIGHT_H800,
    TINY_CPU,
    Calibration,
    CalibrationError,
    ReplicaLimits,
    StepModel,
    calibration_names,
    load_calibration,
    scaled,
    with_limits,
)
from moefleet_perf.capacity import Bound, Capacity, Mix, capacity, work_s
from moefleet_perf.fit import StepTotals, fit_step_model
from moefleet_perf.online import StepWatch, fed
from moefleet_perf.replica import Arrival, Outcome, Step, VirtualReplica, simulate

__all__ = [
    "EIGHT_H800",
    "TINY_CPU",
    "Arrival",
    "Bound",
    "Calibration",
    "CalibrationError",
    "Capacity",
    "Mix",
    "Outcome",
    "ReplicaLimits",
    "Step",
    "StepModel",
    "StepTotals",
    "StepWatch",
    "VirtualReplica",
    "calibration_names",
    "capacity",
    "fed",
    "fit_step_model",
    "load_calibration",
    "scaled",
    "simulate",
    "with_limits",
    "work_s",
]
