"""The simulated replica against the real Torch engine on this machine: `python -m moefleet_bench.fidelity OUT.npz` keeps the recording."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

from moefleet_replay.fidelity import Fidelity, fidelity, save_recording
from rich.console import Console

from .report import Bench, Row

NAMES = ("fidelity_tpot", "fidelity_ttft_p95", "fidelity_capacity")
RECORDING = Path("bench/fidelity.npz")


async def measure(console: Console) -> list[Row]:
    # Local: the other benches need no torch.
    from .fidelity_torch import record, settings

    recording = await asyncio.to_thread(record, settings(), told=console)
    RECORDING.parent.mkdir(parents=True, exist_ok=True)
    save_recording(RECORDING, recording)
    found = await asyncio.to_thread(fidelity, recording)
    for line in described(found):
        console.log(line)
    return list(rows(found))


def rows(found: Fidelity) -> Iterator[Row]:
    """The largest difference of each kind, in percent."""
    for name, kind in zip(NAMES, ("TPOT", "TTFT", "capacity"), strict=True):
        worst = max((r for r in found.rows if r.what.startswith(kind) and r.bound), key=lambda r: abs(r.off))
        against = f"{worst.what}: recorded {worst.recorded:.4g}, simulated {worst.simulated:.4g} {worst.unit}"
        yield Row(name, 100 * abs(worst.off), "%", against=against, wanted=f"at most {100 * worst.bound:g}")  # type: ignore[operator]


def described(found: Fidelity) -> list[str]:
    s = found.step
    return [
        f"fitted: a {s.a_s * 1e3:.3f} ms, b {s.b_s * 1e6:.1f} us, c {s.c_s * 1e6:.1f} us, d {s.d_s * 1e9:.0f} ns",
        f"{found.requests} requests, {found.steps} steps; with the recorded step times {found.steps_alike:.3%} of the steps are the same",
        *(
            f"{'ok  ' if r.holds else 'OFF '} {r.what:38} recorded {r.recorded:9.3f}  simulated {r.simulated:9.3f} {r.unit:11}"
            f" {r.off:+7.2%}" + ("" if r.bound is None else f"  (bound {r.bound:.0%})")
            for r in found.rows
        ),
    ]


FIDELITY = (Bench(NAMES, measure),)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_bench.fidelity", description=__doc__)
    parser.add_argument("out", type=Path, help="where the recording goes (.npz)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from .fidelity_torch import record, settings

    recording = record(settings(), seed=options.seed, told=Console(stderr=True))
    save_recording(options.out, recording)
    found = fidelity(recording)
    print("\n".join(described(found)))
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
