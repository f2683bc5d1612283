"""What a metrics pipeline makes of an observation: rates, means and the mean request, in the words that peers use.

Shared by the adapters because the field scrapes the same few things. Rates are per second over whole fleets, windows in
seconds; nothing here sees the true length of a request that still runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from moefleet_perf import Capacity, Mix, capacity

from moefleet_replay.observation import Observation, Signal

# The share of the TPOT limit at which a replica is called full, everywhere in the replay: arrivals come in bunches.
SIZING_TPOT_SHARE = 0.85
# How long whoever configures a fixed target watches the fleet before he types the number in.
CONFIGURED_AFTER_S = 3600.0


def arriving_tokens_per_s(o: Observation, window_s: float) -> float:
    """Prompt and predicted output tokens of what arrived."""
    s = o.series
    return s.mean(Signal.ARRIVED_INPUT_TOKENS, window_s) + s.mean(
        Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS, window_s
    )


def served_tokens_per_s(o: Observation, window_s: float) -> float:
    """Prompt tokens computed and tokens generated: what engines export. It saturates where they do."""
    return o.series.mean(Signal.PREFILLED_TOKENS, window_s) + o.series.mean(Signal.GENERATED_TOKENS, window_s)


def concurrency(o: Observation, window_s: float) -> float:
    """Requests inside the system, the gateway's queue included: what a queue proxy or a Serve handle counts."""
    s = o.series
    return (
        s.mean(Signal.RUNNING, window_s)
        + s.mean(Signal.REPLICA_QUEUED, window_s)
        + s.mean(Signal.GATEWAY_QUEUED, window_s)
    )


def mean_request(o: Observation, window_s: float) -> Mix | None:
    """The mean request of a window: prompts as they arrived, outputs as they completed (as predicted before any did)."""
    s = o.series
    arrivals = s.total(Signal.ARRIVALS, window_s)
    if arrivals <= 0:
        return None
    completed = s.total(Signal.COMPLETED, window_s)
    output = (
        s.total(Signal.COMPLETED_OUTPUT_TOKENS, window_s) / completed
        if completed > 0
        else s.total(Signal.ARRIVED_PREDICTED_OUTPUT_TOKENS, window_s) / arrivals
    )
    return Mix(
        input_tokens=s.total(Signal.ARRIVED_INPUT_TOKENS, window_s) / arrivals,
        output_tokens=output,
        cached_tokens=s.total(Signal.ARRIVED_CACHED_TOKENS, window_s) / arrivals,
    )


@dataclass(frozen=True, slots=True)
class Configured:
    """What one replica carries of the mean request `mix`."""

    capacity: Capacity
    mix: Mix


class ConfiguredCapacity:
    """What a replica carries, as a person measures it once and types it into a manifest: the closed form for the mean request
    of the first hour of the run, fixed from then on. It follows the hour while the hour lasts."""

    def __init__(self) -> None:
        self._found: Configured | None = None
        self._fixed = False

    def of(self, o: Observation) -> Configured | None:
        """None while nothing has arrived, or when no load meets the objective."""
        if self._fixed:
            return self._found
        mix = mean_request(o, CONFIGURED_AFTER_S)
        if mix is not None:
            found = capacity(o.calibration, mix, SIZING_TPOT_SHARE * o.objective.tpot_s)
            self._found = Configured(found, mix) if found.requests_per_s > 0 else None
            self._fixed = o.now_s >= CONFIGURED_AFTER_S
        return self._found
