"""Is the simulated replica like the real one? A recording of an engine, and the same arrivals in virtual time beside it.

A recording is made of blocks: each is one open-loop run from an idle engine to its last token, at a share of capacity, or with
everything there at once (saturated: what capacity is measured by). The step model is fitted from another part than it is judged on:
from every other step of a block, or from blocks set aside. `python -m moefleet_bench.fidelity` records the Torch engine; any engine that can tell its steps may be recorded.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from moefleet_perf import (
    Calibration,
    CalibrationError,
    Mix,
    ReplicaLimits,
    StepModel,
    StepTotals,
    capacity,
    fit_step_model,
    load_calibration,
)
from moefleet_perf.replica import Arrival, VirtualReplica

FORMAT: Final = "moefleet-fidelity/1"
# Loads from here on are compared with the recorded step times: 1 % of capacity moves the time in the queue by a fifth there.
NEAR_CAPACITY: Final = 0.9
TPOT_BOUND: Final = 0.03
CAPACITY_BOUND: Final = 0.05
TTFT_BOUND: Final = 0.10
# Columns of the two arrays of a block, int64; times in nanoseconds of the recorder's clock since the start of the block.
REQUEST_COLUMNS: Final = ("at_ns", "input_tokens", "output_tokens", "first_ns", "last_ns")
STEP_COLUMNS: Final = ("start_ns", "took_ns", "prefill_tokens", "sequences", "kv_tokens")
# Any limit on the time per token that does not bind: the closed form is then asked for what a full replica does.
NO_LIMIT_S: Final = 1e6
# moefleet_perf.fit keeps the prior below 200 steps.
ENOUGH_STEPS: Final = 400
# Which part of a recording the step model is fitted from.
Fit = Literal["steps", "blocks"]

Whole = npt.NDArray[np.int64]


class FidelityError(ValueError):
    """The text names the file and the field, what was wanted and what was found."""


@dataclass(frozen=True, slots=True)
class Block:
    # Share of the measured capacity; 0: everything is there at once.
    load: float
    # For the fit, not for the comparison.
    fit: bool
    # By REQUEST_COLUMNS in the order of arrival, and by STEP_COLUMNS.
    requests: Whole
    steps: Whole

    @property
    def saturated(self) -> bool:
        return self.load == 0


@dataclass(frozen=True, slots=True)
class Recording:
    # Which engine, model and machine, which clock, and when.
    what: str
    # Calibration that the fit begins from.
    prior: str
    limits: ReplicaLimits
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One number, recorded and simulated. `bound`: of the relative difference; None: for information."""

    what: str
    unit: str
    recorded: float
    simulated: float
    bound: float | None

    @property
    def off(self) -> float:
        return self.simulated / self.recorded - 1

    @property
    def holds(self) -> bool:
        return self.bound is None or abs(self.off) <= self.bound


@dataclass(frozen=True, slots=True)
class Fidelity:
    # Of all blocks together, for information.
    step: StepModel
    rows: tuple[Row, ...]
    # With the recorded step times, share of the steps in which the simulator has the same prompt tokens, sequences and cached tokens.
    steps_alike: float
    requests: int
    steps: int

    @property
    def holds(self) -> bool:
        return all(row.holds for row in self.rows)


def fidelity(recording: Recording, fit: Fit = "steps") -> Fidelity:
    """Fit on the one part, compare on the other. Raises FidelityError where a part is missing.

    "steps": each block is played with the step model of its own even steps, so that a machine that others use may change its speed from
    block to block. "blocks": with that of the blocks set aside for its load, which themselves are not compared."""
    judged = [b for b in recording.blocks if fit == "steps" or not b.fit]
    full = [b for b in judged if b.saturated]
    loads = sorted({b.load for b in judged if not b.saturated})
    if not full or not loads:
        raise FidelityError(f"blocks: wanted saturated ones and loads beside those for the fit, found {len(full)} and {len(loads)}")  # fmt: skip
    try:
        prior = load_calibration(recording.prior).step
    except CalibrationError as error:
        raise FidelityError(f"prior: {error}") from None

    def model(block: Block) -> Calibration:
        if fit == "steps":
            step = fitted([block.steps[::2]], prior)
        else:
            step = fitted([b.steps for b in recording.blocks if b.fit and b.load == block.load], prior)
        return Calibration("recorded", step, recording.limits, recording.what)

    models = [model(b) for b in judged]
    played = [replayed(b, m) for b, m in zip(judged, models, strict=True)]
    exact = [replayed(b, m, recorded_steps=True) for b, m in zip(judged, models, strict=True)]

    def at_load(blocks: Sequence[Block], load: float) -> list[Block]:
        return [b for b in blocks if b.load == load]

    rows = [
        Row(
            "capacity", "requests/s", _mean(requests_per_s(b) for b in full),
            _mean(requests_per_s(b) for b in at_load(played, 0.0)), CAPACITY_BOUND,
        ),
        Row(
            "capacity, closed form", "requests/s", _mean(requests_per_s(b) for b in full),
            _mean(_formula(b, m) for b, m in zip(judged, models, strict=True) if b.saturated), CAPACITY_BOUND,
        ),
    ]  # fmt: skip
    for load in loads:
        near = load >= NEAR_CAPACITY
        real, virtual, stepped = (at_load(blocks, load) for blocks in (judged, played, exact))
        for name, number, bound in (("TPOT mean", tpot_mean_ms, TPOT_BOUND), ("TTFT p95", ttft_p95_ms, TTFT_BOUND)):  # fmt: skip
            said = f"{name} at {100 * load:.0f} %"
            rows.append(Row(said, "ms", number(real), number(virtual), None if near else bound))
            if near:
                rows.append(Row(f"{said}, recorded step times", "ms", number(real), number(stepped), bound))
    return Fidelity(
        fitted([b.steps for b in recording.blocks], prior),
        tuple(rows),
        _alike([(b.steps, e.steps) for b, e in zip(judged, exact, strict=True)]),
        sum(len(b.requests) for b in judged),
        sum(len(b.steps) for b in judged),
    )


def fitted(steps: Sequence[Whole], prior: StepModel) -> StepModel:
    """As the operator fits what replicas report: from sums over steps, with the calibration as prior."""
    totals = StepTotals()
    for part in steps:
        totals += step_totals(part)
    if not totals.count:
        raise FidelityError("blocks: none is for the fit")
    # So few steps say nothing to an operator that hopes for more; of a recording they are all there is.
    once = totals
    while totals.count < ENOUGH_STEPS:
        totals += once
    return fit_step_model(totals, prior)


def step_totals(steps: Whole) -> StepTotals:
    _, took_ns, prefill, sequences, kv = (column.astype(np.float64) for column in steps.T)
    t, p, n = took_ns / 1e9, prefill, sequences
    sums = (t, p, n, kv, t * p, t * n, t * kv, p * p, p * n, p * kv, n * n, n * kv, kv * kv)
    return StepTotals(float(len(steps)), *(float(values.sum()) for values in sums))


def replayed(block: Block, calibration: Calibration, *, recorded_steps: bool = False) -> Block:
    """The arrivals of the block through one virtual replica. With `recorded_steps` each step takes what the recorded one of the
    same number took (the model's time once there are none left)."""
    replica = VirtualReplica(calibration)
    waiting = deque(enumerate(block.requests[:, :3].tolist()))
    took = iter(block.steps[:, 1].tolist()) if recorded_steps else iter(())
    requests = block.requests.copy()
    requests[:, 3:] = -1
    steps: list[tuple[int, int, int, int, int]] = []
    now = 0
    while waiting or not replica.idle:
        while waiting and waiting[0][1][0] <= now:
            number, (at_ns, prompt, answer) = waiting.popleft()
            replica.submit(Arrival(str(number), at_ns / 1e9, prompt, answer))
        step = replica.run_step(0.0)
        if step is None:
            now = max(now, waiting[0][1][0])
            continue
        took_ns = next(took, None)
        if took_ns is None:
            took_ns = round(step.end_s * 1e9)
        steps.append((now, took_ns, step.prefill_tokens, step.sequences, step.kv_tokens))
        now += took_ns
        for name in step.tokens:
            row = requests[int(name)]
            if row[3] < 0:
                row[3] = now
            row[4] = now
    return replace(block, requests=requests, steps=np.array(steps, np.int64))


def requests_per_s(block: Block) -> float:
    """Of a saturated block: output tokens while the batch is full and mixed, as requests of the mean length."""
    requests, steps = block.requests, block.steps
    # At first all of the batch reads prompts; when the last prompt has given its first token, the batch runs empty.
    begin, end = np.quantile(requests[:, 3], 0.3), requests[:, 3].max()
    ends = steps[:, 0] + steps[:, 1]
    full = steps[(ends > begin) & (ends <= end)]
    firsts = ((requests[:, 3] > begin) & (requests[:, 3] <= end)).sum()
    return float((full[:, 3].sum() + firsts) / (full[:, 1].sum() / 1e9) / requests[:, 2].mean())


def tpot_mean_ms(blocks: Sequence[Block]) -> float:
    """Over requests with two tokens or more, of (last - first) / (tokens - 1)."""
    found = np.concatenate([b.requests for b in blocks])
    found = found[found[:, 2] > 1]
    return float(((found[:, 4] - found[:, 3]) / (found[:, 2] - 1)).mean() / 1e6)


def ttft_p95_ms(blocks: Sequence[Block]) -> float:
    found = np.concatenate([b.requests for b in blocks])
    return float(np.quantile(found[:, 3] - found[:, 0], 0.95) / 1e6)


def load_recording(path: Path) -> Recording:
    """What `save_recording` wrote. FidelityError names the file and what is wrong with it."""
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise FidelityError(f"{path}: cannot be read as a recording (.npz): {error}") from None
    try:
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
        if about.get("format") != FORMAT:
            raise FidelityError(f"{path}: format: wanted {FORMAT}, found {about.get('format')!r}")
        blocks = tuple(
            Block(float(b["load"]), bool(b["fit"]), arrays[f"requests_{i}"], arrays[f"steps_{i}"])
            for i, b in enumerate(about["blocks"])
        )
        recording = Recording(
            str(about["what"]), str(about["prior"]), ReplicaLimits(**about["limits"]), blocks
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FidelityError(f"{path}: not a whole recording: {type(error).__name__} {error}") from None
    for where, problem in _problems(recording):
        raise FidelityError(f"{path}: {where}: {problem}")
    return recording


def save_recording(path: Path, recording: Recording) -> None:
    about = {
        "format": FORMAT,
        "what": recording.what,
        "prior": recording.prior,
        "limits": asdict(recording.limits),
        "blocks": [{"load": b.load, "fit": b.fit} for b in recording.blocks],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"about": np.array(json.dumps(about))}
    for i, block in enumerate(recording.blocks):
        arrays[f"requests_{i}"], arrays[f"steps_{i}"] = block.requests, block.steps
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _problems(recording: Recording) -> Iterator[tuple[str, str]]:
    for i, block in enumerate(recording.blocks):
        for name, array, columns in (
            ("requests", block.requests, REQUEST_COLUMNS),
            ("steps", block.steps, STEP_COLUMNS),
        ):
            where = f"{name}_{i}"
            if array.ndim != 2 or array.shape[1] != len(columns) or not len(array) or array.dtype != np.int64:
                yield where, f"wanted int64 rows of {', '.join(columns)}, found {array.dtype} {array.shape}"
            elif (bad := np.flatnonzero((array < 0).any(axis=1))).size:
                yield where, f"row {bad[0]}: wanted no number below 0, found {array[bad[0]].tolist()}"
            elif (bad := np.flatnonzero(np.diff(array[:, 0]) < 0)).size:
                yield where, f"row {bad[0] + 1}: {columns[0]} goes back in time"
        if (bad := np.flatnonzero((block.requests[:, 1:3] < 1).any(axis=1))).size:
            yield f"requests_{i}", f"row {bad[0]}: wanted at least 1 token in and out"


def _formula(block: Block, calibration: Calibration) -> float:
    """What the closed form says of a full replica: no limit on the time per token, every slot in use."""
    inputs, outputs = block.requests[:, 1].astype(np.float64), block.requests[:, 2].astype(np.float64)
    context = float((outputs * (inputs + outputs / 2)).sum() / outputs.sum())
    mix = Mix(float(inputs.mean()), float(outputs.mean()), context_tokens=context)
    return capacity(calibration, mix, NO_LIMIT_S, usable_slots=1.0, usable_kv=1.0).requests_per_s


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _alike(pairs: Sequence[tuple[Whole, Whole]]) -> float:
    same = sum(
        int((real[:n, 2:] == virtual[:n, 2:]).all(axis=1).sum())
        for real, virtual in pairs
        for n in [min(len(real), len(virtual))]
    )
    return same / sum(max(len(real), len(virtual)) for real, virtual in pairs)
