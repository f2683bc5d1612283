"""kubectl as a typed, waiting client. Every wait says what it waited for and what it saw last."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Object = dict[str, Any]
T = TypeVar("T")

# One kubectl call; the API server on a busy two-core machine needs seconds, never a minute.
CALL_LIMIT_S = 60.0
POLL_S = 0.5


class CommandError(RuntimeError):
    """A command that a user would have seen fail, with what it printed."""


def run(*command: str, stdin: str | None = None, limit_s: float = CALL_LIMIT_S) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=limit_s, check=False)
    if done.returncode:
        raise CommandError(
            f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


@dataclass(frozen=True)
class Kube:
    """Objects of one namespace."""

    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None, limit_s: float = CALL_LIMIT_S) -> str:
        return run("kubectl", "-n", self.namespace, *arguments, stdin=stdin, limit_s=limit_s)

    def apply(self, *objects: Object) -> None:
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "--field-manager=tests",
            "-f",
            "-",
            stdin=json.dumps(document),
        )

    def get(self, kind: str, name: str) -> Object | None:
        try:
            found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        except CommandError as error:
            if "NotFound" in str(error):
                return None
            raise
        return found

    def list(self, kind: str, selector: str = "") -> list[Object]:
        items: list[Object] = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return items

    def patch(self, kind: str, name: str, patch: Object) -> None:
        self.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps(patch))

    def delete(self, kind: str, name: str, *arguments: str) -> None:
        self.kubectl("delete", kind, name, "--ignore-not-found", *arguments, limit_s=300)

    def replicas(self, fleet: str) -> list[Object]:
        return self.list("pods", f"moefleet.io/fleet={fleet}")

    def ready_replicas(self, fleet: str) -> list[Object]:
        return [p for p in self.replicas(fleet) if is_ready(p)]

    def draining(self, fleet: str) -> list[Object]:
        return [p for p in self.replicas(fleet) if condition(p, "moefleet.io/Draining") == "True"]

    def remove(self) -> None:
        """The namespace with all that is in it; nobody waits for its end."""
        run("kubectl", "delete", "namespace", self.namespace, "--wait=false", "--ignore-not-found")

    def events(self, fleet: str) -> list[Object]:
        items: list[Object] = json.loads(self.kubectl("get", "events.events.k8s.io", "-o", "json"))["items"]
        return [e for e in items if (e.get("regarding") or {}).get("name") == fleet]

    def explain(self, fleet: str) -> str:
        """What a tired colleague would look at: conditions, pods and the last events."""
        found = self.get("moefleet", fleet) or {}
        lines = [
            f"{c['type']}={c['status']} {c['reason']}: {c['message']}"
            for c in (found.get("status") or {}).get("conditions") or []
        ]
        for pod in self.replicas(fleet):
            conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or []}
            lines.append(f"pod {pod['metadata']['name']} {pod['status'].get('phase')} {conditions}")
            for c in pod["status"].get("containerStatuses") or []:
                lines.append(f"  {c['name']} ready={c['ready']} restarts={c['restartCount']} {c['state']}")
        lines += [f"event {e.get('reason')}: {e.get('note')}" for e in self.events(fleet)[-8:]]
        return "\n".join(lines)


def is_ready(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and condition(pod, "Ready") == "True"


async def ready(kube: Kube, fleet: str, replicas: int = 1, limit_s: float = 180) -> None:
    """Waits until so many replicas are Ready, and the fleet with them."""
    await eventually(
        f"{fleet} Ready with {replicas} replicas",
        lambda: (
            len(kube.ready_replicas(fleet)) == replicas
            and condition(kube.get("moefleet", fleet), "Ready") == "True"
        ),
        limit_s,
        lambda: kube.explain(fleet),
    )


def condition(found: Object | None, kind: str) -> str | None:
    return next(
        (
            c["status"]
            for c in ((found or {}).get("status") or {}).get("conditions") or []
            if c["type"] == kind
        ),
        None,
    )


def reason(found: Object | None, kind: str) -> str | None:
    return next(
        (
            c["reason"]
            for c in ((found or {}).get("status") or {}).get("conditions") or []
            if c["type"] == kind
        ),
        None,
    )


async def eventually(
    what: str, ask: Callable[[], T | None], limit_s: float, context: Callable[[], str] | None = None
) -> T:
    """Asks until the answer is truthy. A failing command counts as "not yet" and is shown if it stays so.

    Raises:
        AssertionError: after `limit_s` seconds, with the last answer and the context.
    """
    until = time.monotonic() + limit_s
    last: object = None
    while time.monotonic() < until:
        try:
            last = answer = await asyncio.to_thread(ask)
            if answer:
                return answer
        except (CommandError, subprocess.TimeoutExpired) as error:
            last = error
        await asyncio.sleep(POLL_S)
    tail = f"\n{context()}" if context else ""
    raise AssertionError(f"waited {limit_s:.0f} s for {what}; last answer: {last!r}{tail}")
