"""Plots as SVG text that stands in a page by itself: no script, no font file, no network, and the same bytes for the same numbers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from moefleet_replay.result import Timeline

OURS_COLOUR: Final = "#c1121f"
ORACLE_COLOUR: Final = "#1a1a1a"
# Told apart in print and by most who see fewer colours; later policies begin again with another mark.
COLOURS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#7a5195", "#8c6d31", "#5f6b6d")
MARKS: Final = "osD^vP"
# Attainments that get a line: the axis is the share that is missed, by powers of ten.
ATTAINMENT_TICKS: Final = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
LEAST_MISSED: Final = 1e-5
# A two-day run has 2,880 minutes; a plot has fewer pixels.
TIMELINE_POINTS: Final = 720


@dataclass(frozen=True, slots=True)
class Point:
    gpu_hours: float
    attainment: float
    # Half widths of the 95 % intervals, 0 with one seed.
    gpu_hours_half: float
    attainment_half: float
    # Shipped default; and whether everything that the panel shows was run.
    default: bool
    complete: bool


@dataclass(frozen=True, slots=True)
class Curve:
    policy: str
    points: tuple[Point, ...]
    ours: bool = False
    oracle: bool = False


def frontier(curves: Sequence[Curve], wanted: float, title: str) -> str:
    """Attainment against GPU-hours, a curve for each policy over its knob. Up and left is better."""

    def draw(axes: Axes) -> None:
        for index, curve in enumerate(c for c in curves if c.points):
            colour = COLOURS[index % len(COLOURS)]
            mark = MARKS[index // len(COLOURS) % len(MARKS)]
            if curve.ours or curve.oracle:
                colour = OURS_COLOUR if curve.ours else ORACLE_COLOUR
            points = sorted(curve.points, key=lambda p: p.gpu_hours)
            x = [p.gpu_hours for p in points]
            y = [_missed(p.attainment) for p in points]
            axes.plot(x, y, color=colour, lw=2.2 if curve.ours else 1.0, ls="--" if curve.oracle else "-", alpha=0.9, label=curve.policy)  # fmt: skip
            for p, mine_x, mine_y in zip(points, x, y, strict=True):
                low, high = (
                    _missed(p.attainment + p.attainment_half),
                    _missed(p.attainment - p.attainment_half),
                )
                axes.errorbar(
                    mine_x, mine_y, xerr=[[p.gpu_hours_half]] * 2, yerr=[[mine_y - low], [high - mine_y]], color=colour,
                    marker="*" if p.default else mark, ms=11 if p.default else 4.5, elinewidth=0.8,
                    mfc=colour if p.complete else "white",
                )  # fmt: skip
        axes.axhline(_missed(wanted), color="#444444", lw=0.8, ls=":")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(FixedLocator([1 - t for t in ATTAINMENT_TICKS]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * (1 - v):.6g} %"))
        axes.set_ylim(1.0, LEAST_MISSED)
        # Some policies cost ten times what others do; equal ratios are equal distances.
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.tick_params(axis="x", which="minor", labelsize=7)
        axes.set_xlabel("GPU-hours, billed from pod creation to end of drain")
        axes.set_ylabel("requests inside the objective")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        if any(c.points for c in curves):
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)

    return _svg(draw, (10.5, 5.2))


def timeline(line: Timeline, title: str, wanted: float) -> str:
    """Replicas at work, on their way and needed over the run; arrivals behind them."""
    step = max(1, len(line.minute_s) // TIMELINE_POINTS)
    hours = [s / 3600 for s in line.minute_s[::step]]
    ready, pending, need = (
        _means(line.ready, step),
        _means(line.pending, step),
        _means(line.need, step),
    )

    def draw(axes: Axes) -> None:
        rate = axes.twinx()
        rate.fill_between(hours, _means(line.arrivals_per_s, step), color="#bbbbbb", alpha=0.35, lw=0)
        rate.set_ylabel("requests/s (grey)")
        rate.set_ylim(bottom=0)
        axes.set_zorder(rate.get_zorder() + 1)
        axes.patch.set_visible(False)
        whole = [r + p for r, p in zip(ready, pending, strict=True)]
        axes.plot(hours, whole, color="#e69f00", lw=1, label="ready and pending")
        axes.plot(hours, ready, color="#0072b2", lw=1.4, label="ready")
        axes.plot(hours, need, color="#c1121f", lw=0.9, label="needed by the closed form")
        late = [
            h
            for h, n, w in zip(hours, _sums(line.requests, step), _sums(line.within, step), strict=True)
            if n and w < wanted * n
        ]
        axes.plot(late, [0] * len(late), "|", color="#c1121f", ms=10, label=f"below {100 * wanted:g} % here")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("hours")
        axes.set_ylabel("replicas")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=4, fontsize=8, frameon=False)

    return _svg(draw, (10.5, 3.8))


def day_plan(hours: Sequence[float], need: Sequence[float], replicas: Sequence[float], title: str) -> str:
    def draw(axes: Axes) -> None:
        axes.step(hours, replicas, where="post", color="#0072b2", lw=1.6, label="replicas")
        axes.plot(hours, need, color="#c1121f", lw=1, label="needed by the closed form")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("hours")
        axes.set_ylabel("replicas")
        axes.set_title(title)
        axes.grid(alpha=0.25)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.42), ncols=4, fontsize=8, frameon=False)

    return _svg(draw, (10.5, 3.8))


def _svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    # Text stays text (small, and can be searched); ids come from the salt and not from chance.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "moefleet", "font.family": "sans-serif", "font.sans-serif": ["sans-serif", "DejaVu Sans"]}  # fmt: skip
    with mpl.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    # Only the element: the XML prologue names a DTD on a server, and does not belong into a page.
    return re.sub(r"^.*?(?=<svg )", "", text.getvalue(), flags=re.DOTALL)


def _missed(attainment: float) -> float:
    return min(1.0, max(LEAST_MISSED, 1.0 - attainment))


def _means(values: Sequence[float], step: int) -> list[float]:
    return [sum(part) / len(part) for i in range(0, len(values), step) if (part := values[i : i + step])]


def _sums(values: Sequence[float], step: int) -> list[float]:
    return [sum(values[i : i + step]) for i in range(0, len(values), step)]
