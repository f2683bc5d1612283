"""Inside a cluster's network: a Simulated fleet under a load that rises and falls, and what operator and gateways kept of it."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_e2e.fleets import RUNTIME_IMAGE
from moefleet_e2e.kube import Kube, Object, condition, eventually, is_ready, run
from moefleet_e2e.release import CHART, Release
from moefleet_load.run import Arrival
from moefleet_load.stream import Outcome, channel, generate
from moefleet_operator.api import MoEFleetSpec
from moefleet_operator.handlers.policy import policy
from rich.console import Console

from .compared import ABOUT, DECISIONS, DEMAND, compare

EXAMPLE = CHART.parent / "examples/deepseek-v2-rehearsal.yaml"
NAMESPACE, FLEET, GPUS = "rehearsal", "deepseek-v2-rehearsal", 8
MAX_REPLICAS = 6
# A replica at this speed carries four to six requests/s of this mix: what two cores can stream fills several.
SPEED = 0.04
# Rates in requests/s, linear between these seconds.
LOAD = ((0, 2.0), (60, 2.0), (120, 11.0), (240, 11.0), (270, 5.0), (360, 5.0), (390, 1.0), (480, 1.0))
# Medians of lognormal lengths, tokens.
PROMPT, ANSWER, SIGMA = 700, 40, 0.7
READY_LIMIT_S, QUIET_S, DEADLINE_S = 180.0, 60.0, 300.0
CHANNELS = 4
console = Console(stderr=True, width=130)


def arrivals(seed: int) -> list[Arrival]:
    """Poisson by thinning."""
    chance = random.Random(seed)
    most = max(rate for _, rate in LOAD)
    found, at_s = [], 0.0
    while True:
        at_s += chance.expovariate(most)
        if at_s >= LOAD[-1][0]:
            return found
        (s0, r0), (s1, r1) = next(pair for pair in pairwise(LOAD) if at_s < pair[1][0])
        if chance.random() * most < r0 + (r1 - r0) * (at_s - s0) / (s1 - s0):
            prompt, answer = (min(round(m * chance.lognormvariate(0, SIGMA)) or 1, 6 * m) for m in (PROMPT, ANSWER))  # fmt: skip
            found.append(Arrival(at_s, prompt, answer))


def asked(index: int, model: str, arrival: Arrival) -> pb.GenerateRequest:
    """No two prompts begin alike: what a prefix cache makes of repeated ones is not what is compared here."""
    chance = random.Random(index)
    ids = [chance.randrange(3, 2000) for _ in range(arrival.prompt_tokens)]
    return pb.GenerateRequest(
        request_id=f"rehearsal-{index}",
        model=model,
        token_ids=pb.TokenIds(ids=ids),
        stopping=pb.Stopping(max_tokens=arrival.output_tokens, ignore_eos=True),
    )


async def load(address: str, model: str, planned: list[Arrival]) -> list[Outcome]:
    """Open loop: each starts when its time has come."""
    channels = [channel(address) for _ in range(CHANNELS)]
    begin = time.monotonic()
    running = []
    for index, arrival in enumerate(planned):
        request = asked(index, model, arrival)
        await asyncio.sleep(max(0.0, begin + arrival.at_s - time.monotonic()))
        running.append(
            asyncio.create_task(generate(channels[index % CHANNELS], request, deadline_s=DEADLINE_S))
        )
    outcomes = await asyncio.gather(*running)
    for one in channels:
        await one.close()
    return outcomes


async def record(out: Path, seed: int) -> None:
    release, kube = Release(), Kube(NAMESPACE)
    console.log("helm install")
    await asyncio.to_thread(release.upgrade)
    run("kubectl", "create", "namespace", NAMESPACE)
    manifest = yaml.safe_load(EXAMPLE.read_text())
    manifest["metadata"] |= {"name": FLEET, "namespace": NAMESPACE}
    manifest["spec"]["engine"]["image"] = RUNTIME_IMAGE
    manifest["spec"]["replica"]["gpus"] = GPUS
    manifest["spec"]["engine"]["args"]["speed"] = SPEED
    manifest["spec"]["scaling"] |= {
        "maxReplicas": MAX_REPLICAS,
        # The real objective, as slow as the steps are.
        "objective": {"timeToFirstToken": f"{2 / SPEED:.0f}s", "timePerOutputToken": f"{100 / SPEED:.0f}ms"},
    }
    kube.apply(manifest)
    ready = lambda: condition(kube.get("moefleet", FLEET), "Ready") == "True"  # noqa: E731
    await eventually(f"{FLEET} to be Ready", ready, READY_LIMIT_S, lambda: kube.explain(FLEET))
    planned = arrivals(seed)
    console.log(f"{len(planned)} requests in {LOAD[-1][0]} s")
    # By the time of their pods' creation.
    starts: dict[tuple[float, str], float] = {}
    task = asyncio.create_task(
        load(release.gateway_address(), str(manifest["spec"]["model"]["name"]), planned)
    )
    quiet_since: float | None = None
    while quiet_since is None or time.monotonic() < quiet_since + QUIET_S:
        pods = await asyncio.to_thread(kube.replicas, FLEET)
        for pod in filter(is_ready, pods):
            created_s, took_s = _cold_start(pod)
            starts.setdefault((created_s, pod["metadata"]["uid"]), took_s)
        if task.done():
            quiet_since = quiet_since or time.monotonic()
        await asyncio.sleep(2.0)
    outcomes = await task
    until_s = time.time()
    console.log(f"{sum(o.end == 'ok' for o in outcomes)} answered of {len(outcomes)}")
    await asyncio.to_thread(_demand, release, out / DEMAND)
    fleet = kube.get("moefleet", FLEET) or {}
    (out / ABOUT).write_text(json.dumps(_about(fleet, starts, until_s), indent=1) + "\n")
    await asyncio.to_thread(_decisions, release, kube, out / DECISIONS)


def _cold_start(pod: Object) -> tuple[float, float]:
    """When it was created, and how long it took; whole seconds, as Kubernetes tells them."""
    became = next(c["lastTransitionTime"] for c in pod["status"]["conditions"] if c["type"] == "Ready")
    created_s = _unix(pod["metadata"]["creationTimestamp"])
    return created_s, _unix(became) - created_s


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _demand(release: Release, path: Path) -> None:
    """The last hour comes at once."""
    key = release.kube.get("secret", f"{release.name}-control-key") or {}
    file = path.with_name("control-key")
    file.write_bytes(base64.b64decode(key["data"]["key"]))
    try:
        controls = [f"--control={pod['status']['podIP']}:8502" for pod in release.pods("gateway")]
        path.unlink(missing_ok=True)
        run(
            sys.executable, "-m", "moefleet_cli", "record", FLEET, "-n", NAMESPACE, *controls, "--key-file", str(file),
            "--duration", "6", "--out", str(path),
        )  # fmt: skip
    finally:
        file.unlink()


def _decisions(release: Release, kube: Kube, path: Path) -> None:
    """The operator writes what it has when it ends."""
    name = release.kube.list("deployments", "app.kubernetes.io/component=operator")[0]["metadata"]["name"]
    release.kube.kubectl("scale", "deployment", name, "--replicas=0")
    release.kube.kubectl("wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=operator", "--timeout=60s", limit_s=90)  # fmt: skip
    kept = kube.get("configmap", f"{FLEET}-scaling") or {}
    path.write_text(kept["data"]["decisions"].strip() + "\n")


def _about(fleet: Object, starts: dict[tuple[float, str], float], until_s: float) -> dict[str, Any]:
    # As the operator itself reads the spec.
    wanted = policy(MoEFleetSpec.model_validate(fleet["spec"]))
    assert wanted.calibration is not None
    step, limits = wanted.calibration.step, wanted.calibration.limits
    return {
        "calibration": {
            "name": wanted.calibration.name,
            "step": {"aS": step.a_s, "bS": step.b_s, "cS": step.c_s, "dS": step.d_s, "eS": step.e_s},
            "limits": {
                "maxSequences": limits.max_sequences,
                "kvMaxTokens": limits.kv_max_tokens,
                "maxBatchTokens": limits.max_batch_tokens,
            },
        },
        "objective": {"ttft_s": wanted.ttft_s, "tpot_s": wanted.tpot_s, "attainment": wanted.attainment},
        "min_replicas": wanted.min_replicas,
        "max_replicas": wanted.max_replicas,
        "initial_replicas": 1,
        "cold_starts_s": [max(starts[pod], 1.0) for pod in sorted(starts)],
        "until_s": until_s,
        "load": LOAD,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m moefleet_rehearsal", description=__doc__)
    parser.add_argument("out", type=Path, help="folder that the recording goes to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--compare", action="store_true", help="record nothing: compare what the folder has with its replay"
    )
    chosen = parser.parse_args()
    if not chosen.compare:
        chosen.out.mkdir(parents=True, exist_ok=True)
        asyncio.run(record(chosen.out, chosen.seed))
    found = compare(chosen.out)
    for at_s, real, replayed in found.table():
        print(f"{at_s:7.1f} s   operator {real}   replay {replayed}")
    real_s, replayed_s = found.replica_s
    print(
        f"same target {found.same_share:.1%} of {found.duration_s:.0f} s, within one {found.near_share:.1%};"
        f" replica-seconds {real_s:.0f} and {replayed_s:.0f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
