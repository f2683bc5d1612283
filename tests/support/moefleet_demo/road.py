"""The road of the demo inside the cluster's network: install, fleet, prompts, load, scaling, spec change, report.

Runs by `python -m moefleet_demo`, which starts the cluster around it; needs KUBECONFIG, kubectl and helm.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_e2e.fleets import RUNTIME_IMAGE
from moefleet_e2e.kube import Kube, Object, condition, eventually, is_ready, reason, run
from moefleet_e2e.release import CHART, Release
from moefleet_load.run import Arrival, Load, quantile, read_azure
from moefleet_load.stream import Outcome, channel, generate
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from .report import Moment, Report, plot, ttft_p99

EXAMPLES = CHART.parent / "examples"
TRACE = Path(__file__).resolve().parents[1] / "traces/azure2023/code_1070s_1150s.csv"
PROMPTS = (
    "Emma was",
    "It is a truth universally acknowledged, that",
    "My dear Mr. Bennet, said his lady to him one day,",
)
NAMESPACE = "demo"
GPUS = 8
TINY, REHEARSAL = "tiny", "deepseek-v2-rehearsal"
# 1 keeps every row of the piece: three rehearsal replicas carry it, and so do two cores.
KEEP_EVERY = 1
# What a client of code completion sets as max_tokens; 3 of the 448 recorded answers were longer (up to 632).
MAX_TOKENS = 256
CHANGE_AT_S = 35.0
TRICKLE_PER_S = 0.5
FLEET_LIMIT_S = 180.0
# Hold and two drains after the last request; then the fleet must be small again.
SHRINK_LIMIT_S = 180.0
WINDOW_S = 5.0


@dataclass
class Road:
    console: Console
    output: Path
    report: Report = field(default_factory=Report)
    release: Release = field(default_factory=Release)
    kube: Kube = field(default_factory=lambda: Kube(NAMESPACE))
    outcomes: list[Outcome] = field(default_factory=list)

    async def walk(self) -> Report:
        begin = time.monotonic()
        await self._install()
        tiny = await self._fleet("tiny.yaml", TINY)
        await self._prompts(tiny)
        rehearsal = await self._fleet("deepseek-v2-rehearsal.yaml", REHEARSAL)
        await self._load(tiny, rehearsal)
        self.report.run_s = round(time.monotonic() - begin, 1)
        self.report.count(self.outcomes)
        self.report.ttft_p99_s = ttft_p99(self.outcomes)
        path = self.report.write(self.output)
        plot(self.report, self.output / "demo.png")
        self._summary(path)
        return self.report

    async def _install(self) -> None:
        with self.console.status("helm install moefleet charts/moefleet"):
            await asyncio.to_thread(self.release.upgrade)
        run("kubectl", "create", "namespace", NAMESPACE)
        run("kubectl", "label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        self.console.print(
            f"[green]installed[/] operator and gateway; clients call {self.release.gateway_address()}"
        )

    async def _fleet(self, example: str, name: str) -> str:
        """Applies an example with this machine's image in place of the placeholder; returns the model's name."""
        manifest = yaml.safe_load((EXAMPLES / example).read_text())
        manifest["metadata"] |= {"name": name, "namespace": NAMESPACE}
        manifest["spec"]["engine"]["image"] = RUNTIME_IMAGE
        # The examples run without GPUs anywhere; this cluster has fake ones, so replicas are whole 8-GPU nodes as in earnest.
        manifest["spec"]["replica"]["gpus"] = GPUS
        began = time.monotonic()
        self.kube.apply(manifest)
        with self.console.status(
            f"kubectl apply -f charts/examples/{example}: waiting for the first replica"
        ):
            await eventually(
                f"{name} to be Ready",
                lambda: condition(self.kube.get("moefleet", name), "Ready") == "True",
                FLEET_LIMIT_S,
                lambda: self.kube.explain(name),
            )
        self.console.print(
            f"[green]ready[/] {name} ({manifest['spec']['engine']['type']}) after {time.monotonic() - began:.1f} s"
        )
        return str(manifest["spec"]["model"]["name"])

    async def _prompts(self, model: str) -> None:
        async with channel(self.release.gateway_address()) as opened:
            for index, prompt in enumerate(PROMPTS):
                request = pb.GenerateRequest(
                    request_id=f"prompt-{index}",
                    model=model,
                    prompt=prompt,
                    sampling=pb.Sampling(temperature=0.8, top_k=40, seed=index + 7),
                    stopping=pb.Stopping(max_tokens=48),
                )
                outcome = await generate(opened, request)
                self.outcomes.append(outcome)
                self.report.sample_text += prompt + outcome.text + "\n"
                self.console.print(
                    f"  [bold]{prompt}[/]{outcome.text}  [dim]({len(outcome.tokens)} tokens, {outcome.end})[/]"
                )

    async def _load(self, tiny: str, rehearsal: str) -> None:
        address = self.release.gateway_address()
        arrivals = [
            Arrival(a.at_s, a.prompt_tokens, min(a.output_tokens, MAX_TOKENS))
            for a in read_azure(TRACE, KEEP_EVERY)
        ]
        end_s = arrivals[-1].at_s
        self.console.print(
            f"load: {len(arrivals)} requests of a recorded production hour ({end_s:.0f} s of it, one row in {KEEP_EVERY}); "
            f"at {CHANGE_AT_S:.0f} s both fleets get a spec change"
        )
        storm = Load(address, rehearsal)
        trickle = Load(address, tiny, channels=1)
        begin = time.monotonic()
        tasks = [
            asyncio.create_task(storm.run(arrivals, "storm")),
            asyncio.create_task(
                trickle.run(
                    [Arrival(i / TRICKLE_PER_S, 24, 24) for i in range(int(end_s * TRICKLE_PER_S))], "trickle"
                )
            ),
            asyncio.create_task(self._change(CHANGE_AT_S)),
        ]
        watch = Watch(self, storm, trickle, begin)
        with Live(console=self.console, refresh_per_second=2, transient=False) as live:
            quiet_since: float | None = None
            while True:
                live.update(await watch.look())
                if all(t.done() for t in tasks):
                    now = time.monotonic()
                    quiet_since = quiet_since or now
                    if watch.settled() or now - quiet_since > SHRINK_LIMIT_S:
                        break
                await asyncio.sleep(1.0)
        for task in tasks:
            await task
        self.outcomes += storm.outcomes + trickle.outcomes
        for name, revisions in self.report.revisions.items():
            revisions.append(await asyncio.to_thread(self._revisions, name))
        self.report.final_replicas = watch.replicas
        self.report.peak_replicas = max(m.ready for m in self.report.timeline)

    async def _change(self, after_s: float) -> None:
        """A change that alters the pod, to both fleets, while they stream."""
        await asyncio.sleep(after_s)
        for name in (REHEARSAL, TINY):
            self.report.revisions[name] = [await asyncio.to_thread(self._revisions, name)]
            template = {"env": [{"name": "DEMO_CHANGE", "value": "1"}]}
            await asyncio.to_thread(
                self.kube.patch, "moefleet", name, {"spec": {"replica": {"podTemplate": template}}}
            )

    def _revisions(self, name: str) -> list[str]:
        return sorted(
            {p["metadata"]["labels"]["moefleet.io/revision"] for p in self.kube.ready_replicas(name)}
        )

    def _summary(self, path: Path) -> None:
        r = self.report
        desired = max(m.desired for m in r.timeline)
        surged = (
            f" (up to {r.peak_replicas} while a revision replaced another)"
            if r.peak_replicas > desired
            else ""
        )
        table = Table(title="moefleet demo", show_header=False)
        rows: list[tuple[str, Any]] = [
            ("requests answered", r.requests_ok),
            ("requests failed", r.requests_failed),
            ("streams cut", r.streams_cut),
            ("output tokens", r.output_tokens),
            ("time to first token, p99", "-" if r.ttft_p99_s is None else f"{r.ttft_p99_s:.2f} s"),
            ("replicas", f"1 -> {desired} -> {r.final_replicas}{surged}"),
            ("cluster and images", f"{r.setup_s:.0f} s"),
            ("the road", f"{r.run_s:.0f} s"),
            ("report", str(path)),
            ("plot", str(path.with_name("demo.png"))),
        ]
        for name, value in rows:
            table.add_row(name, str(value))
        self.console.print(table)


@dataclass
class Watch:
    """Looks once a second; what it sees becomes the live table and the timeline."""

    road: Road
    storm: Load
    trickle: Load
    begin: float
    replicas: int = 0
    _seen: dict[str, str] = field(default_factory=dict)
    _tokens: deque[tuple[float, int, int]] = field(default_factory=deque)
    _last: list[Object] = field(default_factory=list)
    _pods: dict[str, list[Object]] = field(default_factory=dict)

    async def look(self) -> Group:
        self._last, pods = await asyncio.to_thread(self._ask)
        at = time.monotonic() - self.begin
        self._pods = {TINY: [], REHEARSAL: []}
        for pod in pods:
            self._pods.setdefault(pod["metadata"]["labels"].get("moefleet.io/fleet", ""), []).append(pod)
        mine = self._pods[REHEARSAL]
        self.replicas = len(mine)
        tokens = sum(len(o.tokens) for o in self.storm.outcomes)
        self._tokens.append((at, tokens, self.storm.begun))
        while self._tokens[0][0] < at - WINDOW_S:
            self._tokens.popleft()
        first = self._tokens[0]
        span = max(at - first[0], 1.0)
        status = next((f.get("status") or {} for f in self._last if f["metadata"]["name"] == REHEARSAL), {})
        self.road.report.timeline.append(
            Moment(
                round(at, 1),
                round((self.storm.begun - first[2]) / span, 2),
                round((tokens - first[1]) / span, 1),
                self.replicas,
                sum(is_ready(p) for p in mine),
                int(status.get("desiredReplicas") or 0),
            )
        )
        for fleet in self._last:
            self._decision(at, fleet)
        return Group(self._table(at), self._reasons())

    def _ask(self) -> tuple[list[Object], list[Object]]:
        return self.road.kube.list("moefleets"), self.road.kube.list("pods", "moefleet.io/fleet")

    def _decision(self, at: float, fleet: Object) -> None:
        name = fleet["metadata"]["name"]
        decision = ((fleet.get("status") or {}).get("scaling") or {}).get("lastDecision") or {}
        if decision and self._seen.get(name) != decision.get("time"):
            self._seen[name] = decision.get("time", "")
            self.road.report.decisions.append({"at_s": round(at, 1), "fleet": name, **decision})

    def settled(self) -> bool:
        """One ready replica of one revision per fleet, and nothing in progress."""
        return all(
            len(self._pods[f["metadata"]["name"]]) == 1
            and is_ready(self._pods[f["metadata"]["name"]][0])
            and condition(f, "Progressing") != "True"
            for f in self._last
            if f["metadata"]["name"] in self._pods
        )

    def _table(self, at: float) -> Table:
        table = Table(title=f"{at:5.0f} s   streams running {self.storm.running + self.trickle.running}")
        for column in (
            "fleet",
            "output tok/s",
            "ready/pods/desired",
            "TTFT p99",
            "answered",
            "failed",
            "why Ready is so",
        ):
            table.add_column(column)
        moment = self.road.report.timeline[-1]
        for fleet in self._last:
            name = fleet["metadata"]["name"]
            status = fleet.get("status") or {}
            load = self.storm if name == REHEARSAL else self.trickle
            pods = self._pods.get(name, [])
            recent = [o.ttft_s for o in load.outcomes[-50:] if o.ttft_s is not None]
            p99 = quantile(recent, 0.99)
            rate = f"{moment.output_tokens_per_s:.0f}" if name == REHEARSAL else "-"
            bad = sum(o.end != "ok" for o in load.outcomes)
            counts = f"{sum(is_ready(p) for p in pods)}/{len(pods)}/{status.get('desiredReplicas', '?')}"
            ttft = "-" if p99 is None else f"{p99:.2f} s"
            table.add_row(
                name,
                rate,
                counts,
                ttft,
                str(len(load.outcomes) - bad),
                str(bad),
                reason(fleet, "Ready") or "-",
            )
        return table

    def _reasons(self) -> Table:
        table = Table(show_header=False, box=None)
        for decision in self.road.report.decisions[-4:]:
            table.add_row(
                f"{decision['at_s']:5.0f} s",
                f"{decision.get('from')} -> {decision.get('to')}",
                decision.get("reason", ""),
                decision.get("message", ""),
            )
        return table
