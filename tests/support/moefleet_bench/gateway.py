"""What the gateway costs: each run beside the same Envoy without picker, or beside no gateway at all.

All on loopback. The two kinds of runs alternate and ratios are taken inside pairs. Replicas and clients are those of
`streams/`, so that two cores carry them; only the processor time of Envoy and picker counts.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from moefleet_load.stream import token_request
from moefleet_runtime_rig import replica
from moefleet_runtime_rig.process import POD_UID
from rich.console import Console

from .gateway_site import Site, Way, gateway, serve, site, way_of
from .report import Bench, Row, ratio_of_pairs
from .streams import Shape, Window, build, load, write_bodies

PAIRS = 3
# The difference that is looked for is a tenth of what a busy second core adds.
LONG_PAIRS, LONG_WINDOWS = 5, 2
MANY, FEW = 256, 64
INTERVAL_S = 0.02
SHORT, LONG = 50, 400
FLAT_OUT = Shape(MANY, SHORT, 0.0, ramp_s=1.0, window_s=5.0)
# The engine of gateway_tokens: tokens at the pace of the calibrated replica, in so many streams at once.
CALIBRATION, SPEED = "deepseek-v2-8xh800", 1.0
TOKENS_REQUESTS, TOKENS_PROMPT, TOKENS_ANSWER = 512, 1000, 100


async def cpu_short(console: Console) -> list[Row]:
    """Short answers: a pick every 50 messages. The same runs, and some with few streams, tell the first message."""
    async with site(console) as at:
        many = await _rounds(at, (at.direct, at.alone, at.gateway), Shape(MANY, SHORT, INTERVAL_S))
        few = await _rounds(
            at, (at.direct, at.alone, at.gateway), Shape(FEW, SHORT, INTERVAL_S, window_s=5.0)
        )
        flat = await _rounds(at, (at.alone, at.gateway), FLAT_OUT)
    return [
        cpu_row("gateway_cpu_50", many["alone"], many["gateway"], "at most 2.0"),
        cpu_row("gateway_cpu_50_flat_out", flat["alone"], flat["gateway"], ""),
        *(
            first_row(f"gateway_first_message_{name}{suffix}", windows, streams, q)
            for name, q in (("p50", 0.5), ("p99", 0.99))
            for suffix, windows, streams in (("", many, MANY), (f"_{FEW}", few, FEW))
        ),
    ]


async def cpu_long(console: Console) -> list[Row]:
    """Long answers: the window is as long as two, so that it holds two picks of every stream."""
    answer_s = LONG * INTERVAL_S
    async with site(console) as at:
        paced = await _rounds(
            at,
            (at.alone, at.gateway),
            Shape(MANY, LONG, INTERVAL_S, ramp_s=answer_s, window_s=LONG_WINDOWS * answer_s),
            LONG_PAIRS,
        )
        flat = await _rounds(at, (at.alone, at.gateway), Shape(MANY, LONG, 0.0, ramp_s=2.0, window_s=5.0))
    return [
        cpu_row("gateway_cpu_400", paced["alone"], paced["gateway"], "at most 1.2"),
        cpu_row("gateway_cpu_400_flat_out", flat["alone"], flat["gateway"], ""),
    ]


async def picks(console: Console) -> list[Row]:
    """Answers of one message, flat out: the picker is what limits."""
    async with site(console) as at:
        windows = (await _rounds(at, (at.gateway,), Shape(MANY, 1, 0.0, ramp_s=1.0, window_s=5.0)))["gateway"]
    per_core = [w.ended / w.cpu_s[1] for w in windows]
    rate = median(w.ended / w.elapsed_s for w in windows)
    return [
        Row(
            "picks_per_core",
            median(per_core),
            "picks per CPU s of the picker",
            against=f"{rate:.0f}/s made",
            wanted="at least 2000",
        )
    ]


async def tokens(console: Console) -> list[Row]:
    """The Simulated engine at speed 1 behind the real runtime: the same requests directly and through the gateway."""
    direct: list[float] = []
    through: list[float] = []
    with tempfile.TemporaryDirectory(prefix="moefleet-bench-") as name:
        folder = Path(name)
        binary = await build(folder)
        bodies = write_bodies(
            folder / "bodies",
            (token_request("", "chat-model", TOKENS_PROMPT, TOKENS_ANSWER) for _ in range(1)),
        )
        engine = {"calibration": CALIBRATION, "speed": SPEED}
        shape = Shape(FEW, 0, 0.0, requests=TOKENS_REQUESTS)
        async with replica(folder, args=engine) as pod, gateway() as rig:
            rig.world.fleet("chat", model="chat-model", namespace="team")
            serve(rig, POD_UID, "team/chat", pod.grpc_at, pod.control_at)
            await rig.registered(POD_UID)
            for _ in range(PAIRS):
                for way, into in ((Way("direct", (pod.grpc_at,)), direct), (way_of(rig), through)):
                    window = await load(binary, way.targets, bodies, shape)
                    into.append(window.tokens / window.elapsed_s)
                    console.print(
                        f"{way.name:8} {FEW} streams: {into[-1]:.0f} tokens/s in {window.messages} messages,"
                        f" {window.elapsed_s:.1f} s",
                        highlight=False,
                    )
    return [
        Row(
            "gateway_tokens",
            median(through),
            "tokens/s",
            against=f"{median(direct):.0f} directly from the Simulated engine, {CALIBRATION} at speed {SPEED:g}",
            ratio=ratio_of_pairs(through, direct),
            wanted="at least 0.9",
        )
    ]


async def _rounds(
    at: Site, ways: tuple[Way, ...], shape: Shape, pairs: int = PAIRS
) -> dict[str, list[Window]]:
    """One way after the other, again and again: what changes on the machine meets all of them."""
    out: dict[str, list[Window]] = {way.name: [] for way in ways}
    for _ in range(pairs):
        for way in ways:
            out[way.name].append(await at.measure(way, shape))
    return out


def cpu_row(name: str, alone: list[Window], ours: list[Window], wanted: str) -> Row:
    other, value = ([w.cpu_s_per_million for w in windows] for windows in (alone, ours))
    return Row(
        name,
        median(value),
        "CPU s per million messages",
        against=f"{median(other):.1f} of Envoy alone",
        ratio=ratio_of_pairs(value, other),
        wanted=wanted,
    )


def first_row(name: str, windows: dict[str, list[Window]], streams: int, q: float) -> Row:
    """What lies between the way through the gateway and the direct one; the same of Envoy alone against it."""
    direct, alone, ours = ([w.first_ms(q) for w in windows[way]] for way in ("direct", "alone", "gateway"))
    added = median(a - b for a, b in zip(ours, direct, strict=True))
    other = median(a - b for a, b in zip(alone, direct, strict=True))
    return Row(
        name,
        added,
        "ms added to the direct way",
        against=f"{other:.2f} ms added by Envoy alone, {streams} streams; direct {median(direct):.2f} ms",
    )


GATEWAY_BENCHES = (
    Bench(("gateway_cpu_50", "gateway_first_message_p50", "gateway_first_message_p99"), cpu_short),
    Bench(("gateway_cpu_400",), cpu_long),
    Bench(("picks_per_core",), picks),
    Bench(("gateway_tokens",), tokens),
)
