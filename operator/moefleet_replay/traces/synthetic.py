"""Shapes that production shows and no published trace isolates, with every number a parameter.

Lengths are lognormal, two kinds: chat as in ServeGen's m-large (prompt p50 623, p95 2405; output p50 45, p95 522) and reasoning as in
its deepseek-r1 (prompt p50 210, mean about 1270; output p50 811, p95 about 5800). Requests come from the rates as those of a
production trace do (`generation`), with one index of dispersion for the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from moefleet_perf import Mix, capacity, load_calibration

from moefleet_replay.traces.generation import Curve, Generated, Pool
from moefleet_replay.traces.source import TraceError

POOL_SIZE = 4096
# How often the pool of lengths follows a mix or a hit share that moves.
POOL_S = 60
LONGEST_DURATION_S = 14 * 86_400.0
INPUT_LIMIT = 65_536
OUTPUT_LIMIT = 32_768
# Under which the work of chat and reasoning is compared.
CALIBRATION = "deepseek-v2-8xh800"
TPOT_S = 0.085

Values = Mapping[str, float]
PerSecond = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Parameter:
    name: str
    default: float
    low: float
    high: float
    # With its unit.
    meaning: str


@dataclass(frozen=True, slots=True)
class Shape:
    name: str
    summary: str
    parameters: tuple[Parameter, ...]
    # Requests per second at each second of the run, given the seconds.
    rate: Callable[[Values, PerSecond], PerSecond]
    # Share of reasoning among the requests, and share of each prompt that is cached; None: 0 throughout.
    reasoning: Callable[[Values, PerSecond], PerSecond] | None = None
    hit: Callable[[Values, PerSecond], PerSecond] | None = None


COMMON = (
    Parameter("duration_s", 7200, 60, LONGEST_DURATION_S, "length of the run, s"),
    Parameter("rate", 100, 0.001, 100_000, "requests per second at the start"),
    Parameter("idc", 8, 2, 50, "index of dispersion of the counts per second"),
    Parameter("noise", 1, 0, 1, "1: the rate carries the AR(1) of production traces; 0: it does not"),
)
AT = Parameter("at_s", 1800, 0, LONGEST_DURATION_S, "when it begins, s")
OVER = Parameter("over_s", 600, 1, LONGEST_DURATION_S, "how long the change takes, s")
FACTOR = Parameter("factor", 3, 0.01, 1000, "rate afterwards over rate before")


def _to(values: Values, seconds: PerSecond) -> PerSecond:
    """0 before at_s, 1 after at_s + over_s, a straight line between."""
    return np.clip((seconds - values["at_s"]) / values["over_s"], 0.0, 1.0)


def _constant(values: Values, seconds: PerSecond) -> PerSecond:
    return np.full(len(seconds), values["rate"])


def _step(values: Values, seconds: PerSecond) -> PerSecond:
    return values["rate"] * np.where(seconds >= values["at_s"], values["factor"], 1.0)


def _ramp(values: Values, seconds: PerSecond) -> PerSecond:
    return values["rate"] * (1.0 + (values["factor"] - 1.0) * _to(values, seconds))


def _surge(values: Values, seconds: PerSecond) -> PerSecond:
    rise = np.clip((seconds - values["at_s"]) / values["rise_s"], 0.0, 1.0)
    fall = np.clip(
        (seconds - values["at_s"] - values["rise_s"] - values["hold_s"]) / values["fall_s"], 0.0, 1.0
    )
    return values["rate"] * (1.0 + (values["factor"] - 1.0) * (rise - fall))


def _sinusoid(values: Values, seconds: PerSecond) -> PerSecond:
    """Starts at the trough."""
    middle, swing = (values["high"] + values["low"]) / 2, (values["high"] - values["low"]) / 2
    return middle - swing * np.cos(2 * math.pi * seconds / values["period_s"])


def _same_work(values: Values, seconds: PerSecond) -> PerSecond:
    """The rate that keeps the arriving work (replica-seconds per second) what it was, while reasoning takes over; times factor."""
    share = _share(values, seconds)
    chat, reasoning = work_per_request()
    level = 1.0 + (values["factor"] - 1.0) * _to(values, seconds)
    return values["rate"] * level * chat / ((1.0 - share) * chat + share * reasoning)


def _share(values: Values, seconds: PerSecond) -> PerSecond:
    return values["share"] * _to(values, seconds)


def _hits(values: Values, seconds: PerSecond) -> PerSecond:
    return values["hit"] + (values["hit_after"] - values["hit"]) * _to(values, seconds)


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape("constant", "the same rate throughout", COMMON, _constant),
        Shape("step", "the rate jumps at one moment and stays", (*COMMON, AT, FACTOR), _step),
        Shape(
            "ramp", "the rate goes to another level in a straight line", (*COMMON, AT, OVER, FACTOR), _ramp
        ),
        Shape(
            "surge",
            "the rate rises within a cold start, stays up, and falls back",
            (
                *COMMON,
                AT,
                FACTOR,
                Parameter("rise_s", 120, 1, LONGEST_DURATION_S, "how long it rises, s"),
                Parameter("hold_s", 900, 0, LONGEST_DURATION_S, "how long it stays up, s"),
                Parameter("fall_s", 300, 1, LONGEST_DURATION_S, "how long it falls, s"),
            ),
            _surge,
        ),
        Shape(
            "sinusoid",
            "the rate swings (1 to 24 requests/s is ai-dynamo/dynamo issue 10528, where only 9 % met the objective)",
            (
                *(common for common in COMMON if common.name != "rate"),
                Parameter("low", 1, 0.001, 100_000, "requests per second at the trough, where it starts"),
                Parameter("high", 24, 0.001, 100_000, "requests per second at the crest"),
                Parameter("period_s", 1800, 10, LONGEST_DURATION_S, "from crest to crest, s"),
            ),
            _sinusoid,
        ),
        Shape(
            "mix-shift",
            "chat turns into reasoning; the arriving work stays what it was, the tokens do not",
            (
                *COMMON,
                AT,
                OVER,
                Parameter("share", 1, 0, 1, "share of reasoning among the requests afterwards"),
                Parameter("factor", 1, 0.01, 1000, "arriving work afterwards over work before"),
            ),
            _same_work,
            reasoning=_share,
        ),
        Shape(
            "prefix-collapse",
            "the prefix cache stops hitting: the same requests, more prefill",
            (
                *COMMON,
                AT,
                Parameter("over_s", 60, 1, LONGEST_DURATION_S, "how long the change takes, s"),
                Parameter("hit", 0.6, 0, 1, "share of each prompt that is cached before"),
                Parameter("hit_after", 0.05, 0, 1, "share of each prompt that is cached afterwards"),
            ),
            _constant,
            hit=_hits,
        ),
    )
}


def open_synthetic(name: str, given: Values | None = None, *, scale: float = 1.0, seed: int = 0) -> Generated:
    """`given` overrides defaults; rates are multiplied by `scale`."""
    if name not in SHAPES:
        raise TraceError(f"synthetic: no shape {name!r}; there are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    values = _values(shape, given or {})
    if not (math.isfinite(scale) and scale > 0):
        raise TraceError(f"scale: wanted a number above 0, found {scale}")
    seconds = np.arange(math.ceil(values["duration_s"]), dtype=np.float64) + 0.5
    said = ", ".join(f"{key}={value:g}" for key, value in values.items())
    return Generated(
        name=f"synthetic {name}" if scale == 1 else f"synthetic {name} x{scale:g}",
        describe=f"{shape.summary} ({said}), rate x{scale:g}, seed {seed}",
        warnings=(),
        curve=Curve(0, shape.rate(values, seconds) * scale, np.full(len(seconds), values["idc"])),
        pools=_pools(shape, values, len(seconds)),
        start_s=0,
        end_s=len(seconds),
        seed=seed,
        modulated=values["noise"] >= 0.5,
    )


@cache
def lengths(kind: str) -> Pool:
    """Quantiles of the lognormals, so that percentiles are exact; prompt and output are independent."""
    prompt, output = {"chat": ((623, 0.821), (45, 1.49)), "reasoning": ((210, 1.9), (811, 1.2))}[kind]
    quantile = NormalDist().inv_cdf
    normal = np.array([quantile((place + 0.5) / POOL_SIZE) for place in range(POOL_SIZE)])
    mixed = np.random.Generator(np.random.PCG64(0)).permutation(normal)
    inputs = np.clip(np.rint(prompt[0] * np.exp(prompt[1] * normal)), 1, INPUT_LIMIT).astype(np.int32)
    outputs = np.clip(np.rint(output[0] * np.exp(output[1] * mixed)), 1, OUTPUT_LIMIT).astype(np.int32)
    return Pool(0, inputs, outputs, np.zeros(POOL_SIZE, np.int32))


@cache
def work_per_request() -> tuple[float, float]:
    """Replica-seconds of one chat and one reasoning request, by the closed form at the mean lengths."""
    calibration = load_calibration(CALIBRATION)
    chat, reasoning = (
        capacity(
            calibration, Mix(float(pool.input_tokens.mean()), float(pool.output_tokens.mean())), TPOT_S
        ).replica_s_per_request
        for pool in (lengths("chat"), lengths("reasoning"))
    )
    return chat, reasoning


def _values(shape: Shape, given: Values) -> dict[str, float]:
    values = {parameter.name: parameter.default for parameter in shape.parameters}
    for name, value in given.items():
        if name not in values:
            raise TraceError(f"synthetic {shape.name}: no parameter {name!r}; there are {', '.join(values)}")
        values[name] = value
    for parameter in shape.parameters:
        value = values[parameter.name]
        if not parameter.low <= value <= parameter.high:
            raise TraceError(
                f"synthetic {shape.name}: {parameter.name} is {value:g}, wanted {parameter.low:g} to {parameter.high:g}"
            )
    if values.get("low", 0.0) > values.get("high", 0.0):
        raise TraceError(f"synthetic {shape.name}: low {values['low']:g} is above high {values['high']:g}")
    return values


def _pools(shape: Shape, values: Values, duration_s: int) -> list[Pool]:
    starts = np.arange(0, duration_s, POOL_S)
    middles = starts.astype(np.float64) + POOL_S / 2
    shares = shape.reasoning(values, middles) if shape.reasoning else np.zeros(len(starts))
    hits = shape.hit(values, middles) if shape.hit else np.zeros(len(starts))
    chat, reasoning = lengths("chat"), lengths("reasoning")
    # Spread over the quantiles: any number of the first ones is a fair sample of all.
    order = np.random.Generator(np.random.PCG64(1)).permutation(POOL_SIZE)
    pools: list[Pool] = []
    before: tuple[int, float] | None = None
    for start, share, hit in zip(starts.tolist(), shares.tolist(), hits.tolist(), strict=True):
        of_reasoning = round(share * POOL_SIZE)
        if (of_reasoning, hit) == before:
            continue
        before = (of_reasoning, hit)
        inputs, outputs = chat.input_tokens.copy(), chat.output_tokens.copy()
        places = order[:of_reasoning]
        inputs[places], outputs[places] = reasoning.input_tokens[places], reasoning.output_tokens[places]
        cached = np.minimum(np.rint(inputs * hit), inputs - 1).astype(np.int32)
        pools.append(Pool(start, inputs, outputs, cached))
    return pools
