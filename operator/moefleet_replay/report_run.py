"""One run as a page: the summary, the run as time went by, and every decision with its reason."""

from __future__ import annotations

from html import escape

from moefleet_replay.plan import Plan, bound_sentences
from moefleet_replay.report_page import page, table
from moefleet_replay.report_plots import day_plan, timeline
from moefleet_replay.result import RunResult

# A page with more rows than this is no longer read; the count says what is missing.
DECISIONS_SHOWN = 2000


def run_html(result: RunResult) -> str:
    s = result.summary
    wanted = float(result.setup.get("attainment", 0.99))
    summary = [[name, f"{value:,.6g}" if isinstance(value, float) else str(value)] for name, value in s.to_json().items()]  # fmt: skip
    setup = [[name, str(value)] for name, value in result.setup.items()]
    decisions = [
        [f"{line.at_s / 3600:.3f}", str(line.before), str(line.after), line.reason]
        for line in result.decisions[:DECISIONS_SHOWN]
    ]
    left = len(result.decisions) - len(decisions)
    parts = [
        f"<h1>{escape(s.policy)}</h1>",
        f"<p>{100 * s.attainment:.3f} % of {s.requests:,} requests inside the objective for {s.gpu_hours:,.1f} GPU-hours.</p>",
        timeline(result.timeline, "the run", wanted),
        "<h2>Summary</h2>",
        table(["field", "value"], summary),
        "<h2>What was run</h2>",
        table(["field", "value"], setup),
        f"<h2>Decisions</h2><details><summary>{len(result.decisions)} changes of the target"
        + (f", the last {left} not shown" if left else "")
        + f"</summary>{table(['hour', 'from', 'to', 'reason'], decisions)}</details>",
    ]
    return page(f"moefleet replay: {s.policy}", "\n".join(parts))


def plan_html(plan: Plan, currency: str) -> str:
    margin = "nothing is earned" if plan.margin_percent is None else f"{plan.margin_percent:.1f} %"
    per_day = 1 / plan.days
    rows = [
        ["replicas", f"{plan.least_replicas:.0f} to {plan.most_replicas:.0f}, from the {plan.source}"],
        ["GPU-hours a day", f"{plan.gpu_hours * per_day:,.1f}"],
        ["GPU-hours a day with the most replicas all day", f"{plan.static_gpu_hours * per_day:,.1f}"],
        ["cost per million tokens", f"{plan.cost_per_mtok:.4f} {currency}"],
        ["margin", margin],
        *(
            [["inside the objective", f"{100 * plan.attainment:.3f} %"]]
            if plan.attainment is not None
            else []
        ),
        *[["what binds", said] for said in bound_sentences(plan)],
    ]
    hours = [w.start_s / 3600 for w in plan.windows]
    picture = day_plan(hours, [w.need for w in plan.windows], [w.replicas for w in plan.windows], "the plan")
    return page("moefleet plan", f"<h1>Plan</h1>{picture}{table(['', ''], rows)}")
