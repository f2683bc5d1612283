"""What the demo found, as one JSON file and one picture."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moefleet_load.run import quantile
from moefleet_load.stream import End, Outcome

# maxReplicas of the rehearsal; the recorded load needs more than two.
PEAK = 3


@dataclass(slots=True)
class Moment:
    """One second of the live table."""

    at_s: float
    arrived_per_s: float
    output_tokens_per_s: float
    replicas: int
    ready: int
    desired: int


@dataclass(slots=True)
class Report:
    setup_s: float = 0.0
    run_s: float = 0.0
    requests_ok: int = 0
    requests_failed: int = 0
    streams_cut: int = 0
    ttft_p99_s: float | None = None
    output_tokens: int = 0
    peak_replicas: int = 0
    final_replicas: int = 0
    decisions: list[dict[str, Any]] = field(default_factory=list)
    sample_text: str = ""
    # Revisions of each fleet's ready replicas before and after the spec change.
    revisions: dict[str, list[list[str]]] = field(default_factory=dict)
    # Not promised, but what a reader asks next.
    errors: list[str] = field(default_factory=list)
    timeline: list[Moment] = field(default_factory=list)

    def count(self, outcomes: list[Outcome]) -> None:
        self.requests_ok += sum(o.end is End.OK for o in outcomes)
        self.requests_failed += sum(o.end is End.FAILED for o in outcomes)
        self.streams_cut += sum(o.end is End.CUT for o in outcomes)
        self.output_tokens += sum(len(o.tokens) for o in outcomes)
        self.errors += [f"{o.request_id}: {o.code} {o.detail}" for o in outcomes if o.end is not End.OK][
            : 20 - len(self.errors)
        ]

    def judge(self) -> list[str]:
        """Every promise that did not hold, as a sentence; empty is success."""
        broken = []
        if self.requests_ok == 0:
            broken.append("no request was answered")
        if self.requests_failed:
            broken.append(f"{self.requests_failed} requests failed")
        if self.streams_cut:
            broken.append(f"{self.streams_cut} streams were cut")
        if not self.sample_text.strip():
            broken.append("the real checkpoint wrote no text")
        if self.peak_replicas < PEAK:
            broken.append(f"the fleet grew to {self.peak_replicas} ready replicas instead of {PEAK}")
        for fleet, (before, after) in self.revisions.items():
            if not after or set(before) & set(after):
                broken.append(
                    f"{fleet} still serves {after or 'nothing'} after the spec change; before it was {before}"
                )
        if self.final_replicas != 1:
            broken.append(f"the fleet ended with {self.final_replicas} replicas instead of 1")
        return broken

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "report.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def ttft_p99(outcomes: list[Outcome]) -> float | None:
    return quantile([o.ttft_s for o in outcomes if o.ttft_s is not None], 0.99)


def plot(report: Report, path: Path) -> None:
    """Tokens/s and arrivals above, replicas below, decisions as marks on the time axis."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    at = [m.at_s for m in report.timeline]
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(10, 6), sharex=True, height_ratios=[3, 2], layout="constrained"
    )
    top.plot(
        at,
        [m.output_tokens_per_s for m in report.timeline],
        color="tab:blue",
        label="output tokens/s (5 s mean)",
    )
    top.set_ylabel("output tokens/s", color="tab:blue")
    arrivals = top.twinx()
    arrivals.fill_between(
        at, [m.arrived_per_s for m in report.timeline], step="mid", alpha=0.25, color="tab:gray"
    )
    arrivals.set_ylabel("requests/s that arrived")
    bottom.step(at, [m.desired for m in report.timeline], where="post", color="tab:orange", label="desired")
    bottom.step(at, [m.replicas for m in report.timeline], where="post", color="tab:gray", label="pods")
    bottom.step(at, [m.ready for m in report.timeline], where="post", color="tab:green", label="ready")
    for decision in report.decisions:
        bottom.axvline(decision["at_s"], color="tab:red", lw=0.6, alpha=0.6)
    bottom.set_ylim(0, max([m.replicas for m in report.timeline] or [1]) + 0.5)
    bottom.set_ylabel("replicas")
    bottom.set_xlabel("seconds")
    bottom.legend(loc="upper left")
    failed = report.requests_failed + report.streams_cut
    figure.suptitle(
        f"moefleet demo: {report.requests_ok} streams, {failed} failed or cut; replicas follow the tokens that arrive"
    )
    figure.savefig(path, dpi=110)
