"""A calibration: how long a step of one replica takes, and what the replica can hold."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Final

# A replica of DeepSeek-V2 on eight H800 with TensorRT-LLM: what the Simulated engine is when it is not told otherwise, and
# what a TensorRTLLM replica is counted as until its own steps are known.
EIGHT_H800: Final = "deepseek-v2-8xh800"
# The tiny checkpoint in the Torch engine on CPU cores, as measured: what a Torch replica is counted as.
TINY_CPU: Final = "tiny-cpu"
# Above these a number is a typing error (milliseconds for seconds, bytes for tokens), not a replica.
MAX_COEFFICIENT_S = 3600.0
MAX_COUNT = 10**9


class CalibrationError(ValueError):
    """The calibration does not exist or says something impossible; the text names the field."""


@dataclass(frozen=True, slots=True)
class StepModel:
    """T = a + b*prefill_tokens + c*sequences + d*kv_tokens + e*prefill_context, in seconds.

    a: launch and communication that every step pays. b: one prompt token. c: one sequence that decodes one token.
    d: one token of keys and values that attention reads for the sequences that decode.
    e: one prompt token times one token of the context that it attends to; matters for prompts of ten thousands of tokens.
    """

    a_s: float
    b_s: float
    c_s: float
    d_s: float
    e_s: float = 0.0

    def step_time_s(
        self, prefill_tokens: float, sequences: float, kv_tokens: float, prefill_context: float = 0.0
    ) -> float:
        """`prefill_context`: sum over the chunks of the step of their tokens times their mean context."""
        linear_s = self.a_s + self.b_s * prefill_tokens + self.c_s * sequences + self.d_s * kv_tokens
        return linear_s + self.e_s * prefill_context


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """What one replica holds at once, summed over its ranks."""

    # Sequences that decode in one step (with attention data parallelism: ranks times the engine's max_batch_size).
    max_sequences: int
    # Tokens whose keys and values fit the cache.
    kv_max_tokens: int
    # Prompt and decode tokens of one step. A step this full must stay inside the TPOT limit: a + b*C <= T*.
    max_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Calibration:
    name: str
    step: StepModel
    limits: ReplicaLimits
    # Where the numbers come from and what they are good for, for the person who doubts them.
    provenance: str


def calibration_names() -> list[str]:
    """Names of the calibrations inside the package, sorted."""
    folder = resources.files("moefleet_perf").joinpath("calibrations")
    return sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json"))


def load_calibration(source: str | Mapping[str, Any]) -> Calibration:
    """By name from the package, or from the same fields given in place.

    `{"name": ..., "step": {"aS", "bS", "cS", "dS", optional "eS"}, "limits": {"maxSequences", "kvMaxTokens", "maxBatchTokens"}, "provenance": ...}`;
    `"base": NAME` takes what is not given from a calibration of the package.
    """
    if isinstance(source, str):
        return _parse(_packaged(source), where=f"calibration {source!r}")
    if not isinstance(source, Mapping):
        raise CalibrationError(f"calibration: wanted a name or an object, found {type(source).__name__}")
    given = dict(source)
    base = given.pop("base", None)
    if base is None:
        return _parse(given, where="calibration given in place")
    if not isinstance(base, str):
        raise CalibrationError(f"calibration.base: wanted a name, found {base!r}")
    under = dict(_packaged(base))
    for field, value in given.items():
        nested = isinstance(value, Mapping) and isinstance(under.get(field), Mapping)
        under[field] = {**under[field], **value} if nested else value
    return _parse(under, where=f"calibration on base {base!r}")


def scaled(calibration: Calibration, speed: float) -> Calibration:
    """The same replica at `speed` times its pace: 0.02 is 50 times slower. What it can hold stays."""
    if not (math.isfinite(speed) and speed > 0):
        raise CalibrationError(f"speed: wanted a number above 0, found {speed!r}")
    if speed == 1.0:
        return calibration
    m = calibration.step
    return replace(
        calibration,
        step=StepModel(m.a_s / speed, m.b_s / speed, m.c_s / speed, m.d_s / speed, m.e_s / speed),
        provenance=f"{calibration.provenance} Scaled to {speed:g} of its speed.",
    )


def with_limits(
    calibration: Calibration,
    *,
    max_sequences: int | None = None,
    kv_max_tokens: int | None = None,
    max_batch_tokens: int | None = None,
) -> Calibration:
    """The calibration under the limits that an engine was started with; None keeps its own."""
    now = calibration.limits
    limits = ReplicaLimits(
        max_sequences=now.max_sequences if max_sequences is None else max_sequences,
        kv_max_tokens=now.kv_max_tokens if kv_max_tokens is None else kv_max_tokens,
        max_batch_tokens=now.max_batch_tokens if max_batch_tokens is None else max_batch_tokens,
    )
    _check_limits(limits, where=f"limits of calibration {calibration.name!r}")
    return calibration if limits == now else replace(calibration, limits=limits)


def _packaged(name: str) -> dict[str, Any]:
    names = calibration_names()
    if name not in names:
        raise CalibrationError(f"calibration {name!r} is unknown; known are {', '.join(names)}")
    text = (
        resources.files("moefleet_perf").joinpath("calibrations", f"{name}.json").read_text(encoding="utf-8")
    )
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CalibrationError(f"calibration {name!r}: not JSON: {error}") from None
    if not isinstance(data, dict):
        raise CalibrationError(f"calibration {name!r}: wanted an object, found {type(data).__name__}")
    return data


def _parse(data: Mapping[str, Any], where: str) -> Calibration:
    _fields(data, {"name", "step", "limits", "provenance"}, where, optional={"name", "provenance"})
    name, provenance = data.get("name", "inline"), data.get("provenance", "Given in place.")
    for field, text in (("name", name), ("provenance", provenance)):
        if not isinstance(text, str) or not text:
            raise CalibrationError(f"{where}: {field}: wanted text, found {text!r}")
    step, limits = data["step"], data["limits"]
    _fields(step, {"aS", "bS", "cS", "dS", "eS"}, f"{where}: step", optional={"eS"})
    _fields(limits, {"maxSequences", "kvMaxTokens", "maxBatchTokens"}, f"{where}: limits")
    coefficients = {"eS": 0.0, **step}
    names = ("aS", "bS", "cS", "dS", "eS")
    model = StepModel(*(_seconds(coefficients[f], f"{where}: step.{f}") for f in names))
    if model.a_s <= 0:
        raise CalibrationError(f"{where}: step.aS: a step takes time even when empty, found {model.a_s:g}")
    if model.b_s + model.c_s <= 0:
        raise CalibrationError(
            f"{where}: step.bS and step.cS are both 0: tokens would be free and capacity infinite"
        )
    held = ReplicaLimits(
        max_sequences=_count(limits["maxSequences"], f"{where}: limits.maxSequences"),
        kv_max_tokens=_count(limits["kvMaxTokens"], f"{where}: limits.kvMaxTokens"),
        max_batch_tokens=_count(limits["maxBatchTokens"], f"{where}: limits.maxBatchTokens"),
    )
    _check_limits(held, where)
    return Calibration(name=name, step=model, limits=held, provenance=provenance)


def _fields(
    data: Any, wanted: set[str], where: str, optional: frozenset[str] | set[str] = frozenset()
) -> None:
    if not isinstance(data, Mapping):
        raise CalibrationError(f"{where}: wanted an object, found {type(data).__name__}")
    if unknown := sorted(set(data) - wanted):
        raise CalibrationError(
            f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(wanted))}"
        )
    if missing := sorted(wanted - optional - set(data)):
        raise CalibrationError(f"{where}: {', '.join(missing)} missing")


def _seconds(value: Any, where: str) -> float:
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not math.isfinite(value) or not 0 <= value <= MAX_COEFFICIENT_S:
        raise CalibrationError(f"{where}: wanted seconds from 0 to {MAX_COEFFICIENT_S:g}, found {value!r}")
    return float(value)


def _count(value: Any, where: str) -> int:
    # JSON writers turn 6e6 into a float; a whole one is meant as a count.
    whole = (
        value.is_integer()
        if isinstance(value, float)
        else isinstance(value, int) and not isinstance(value, bool)
    )
    if not whole or not 1 <= value <= MAX_COUNT:
        raise CalibrationError(f"{where}: wanted a whole number from 1 to {MAX_COUNT}, found {value!r}")
    return int(value)


def _check_limits(limits: ReplicaLimits, where: str) -> None:
    for field, value in (
        ("maxSequences", limits.max_sequences),
        ("kvMaxTokens", limits.kv_max_tokens),
        ("maxBatchTokens", limits.max_batch_tokens),
    ):
        if not 1 <= value <= MAX_COUNT:
            raise CalibrationError(f"{where}: {field}: wanted 1 to {MAX_COUNT}, found {value!r}")
