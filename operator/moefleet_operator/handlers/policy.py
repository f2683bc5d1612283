"""What scaling is told of a fleet's wishes and replicas: from the spec to `scaling.Policy`, and from pods to `scaling.Supply`. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from moefleet_perf import (
    EIGHT_H800,
    TINY_CPU,
    Calibration,
    CalibrationError,
    load_calibration,
    scaled,
    with_limits,
)

from moefleet_operator.api import EngineSpec, MoEFleetSpec, parse_duration_s
from moefleet_operator.planning.observed import Json, Replica
from moefleet_operator.scaling import Policy, Supply
from moefleet_operator.scaling.law import WARM_CACHE_S

# As the engine takes it: a replica with more does not start.
SPEED_MAX: Final = 1000.0
# As Supply has it.
COLD_STARTS_MAX: Final = 64


def policy(spec: MoEFleetSpec) -> Policy:
    idle = spec.scaling.idle
    sleep = idle.scale_to_zero_after if idle is not None else None
    return Policy(
        min_replicas=spec.scaling.min_replicas,
        max_replicas=spec.scaling.max_replicas,
        tpot_s=parse_duration_s(spec.scaling.objective.time_per_output_token),
        ttft_s=parse_duration_s(spec.scaling.objective.time_to_first_token),
        calibration=calibration(spec.engine),
        scale_to_zero_after_s=parse_duration_s(sleep) if sleep is not None else None,
        attainment=float(spec.scaling.objective.attainment_percent) / 100,
    )


# Files of the package, which every fleet asks for at every tick.
@lru_cache(maxsize=64)
def _packaged(name: str) -> Calibration:
    return load_calibration(name)


def calibration(engine: EngineSpec) -> Calibration | None:
    """None: nobody knows what a replica of this fleet carries."""
    # With attention data parallelism each rank has a batch of its own.
    ranks = engine.parallelism.tensor if engine.parallelism.attention_data else 1
    try:
        match engine.type:
            case "Simulated":
                # As the engine itself reads its arguments: what it will be is what we count on.
                given = engine.args.get("calibration", EIGHT_H800)
                named = _packaged(given) if isinstance(given, str) else load_calibration(given)
                return scaled(_limited(named, engine, ranks), _speed(engine))
            case "Torch":
                # One device, one batch. Checkpoints other than the tiny one are slower; their own steps say by how much.
                return _limited(_packaged(TINY_CPU), engine, 1)
            case "TensorRTLLM":
                return _limited(_packaged(EIGHT_H800), engine, ranks)
    except (CalibrationError, TypeError, ValueError):
        # Wrong arguments are the planner's to tell; here they only mean that the capacity is not known.
        return None


def _speed(engine: EngineSpec) -> float:
    speed = float(engine.args.get("speed", 1.0))
    if not 0 < speed <= SPEED_MAX:
        raise ValueError(f"speed: wanted more than 0 and at most {SPEED_MAX:g}, found {speed!r}")
    return speed


def _limited(named: Calibration, engine: EngineSpec, ranks: int) -> Calibration:
    """The fleet's limits bind where they are tighter."""
    return with_limits(
        named,
        max_sequences=min(named.limits.max_sequences, engine.limits.max_batch_size * ranks),
        max_batch_tokens=min(named.limits.max_batch_tokens, engine.limits.max_batch_tokens),
    )


def supply(replicas: Sequence[Replica], target: int, cold_starts_s: Sequence[float], wall: float) -> Supply:
    live = [replica for replica in replicas if replica.live]
    starting = [r for r in live if r.phase == "Starting"]
    return Supply(
        target=target,
        ready=sum(1 for r in live if r.ready),
        pending_ages_s=tuple(max(0.0, wall - r.pod.created_at) for r in starting),
        unschedulable=sum(1 for r in live if r.phase == "Pending"),
        draining=sum(1 for r in replicas if r.draining and not r.pod.terminating),
        cold_starts_s=tuple(cold_starts_s)[-COLD_STARTS_MAX:],
        cold_caches=sum(1 for r in live if r.ready and wall - (r.pod.since("Ready") or 0.0) < WARM_CACHE_S),
    )


def told_target(raw: Json, minimum: int) -> int:
    """The number that the fleet's status has; of a fleet without one, `minimum`. Before the first plan of a new leader
    this is all that is known: taking minReplicas instead would wake every fleet that sleeps."""
    found = (raw.get("status") or {}).get("desiredReplicas")
    return found if isinstance(found, int) else minimum


def told_cold_starts_s(raw: Json) -> tuple[float, ...]:
    """What an operator before us measured, from the status: a fleet that sleeps has no replica whose start we could see."""
    found = (raw.get("status") or {}).get("coldStart") or {}
    try:
        return tuple(parse_duration_s(str(found[name])) for name in ("p50", "p90") if name in found)
    except (TypeError, ValueError):
        return ()
