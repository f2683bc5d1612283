"""A tiny kubectl: one namespace, text or JSON back, errors with what kubectl said."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# One call; the API server on a busy two-core machine needs seconds, never a minute.
CALL_LIMIT_S = 60.0


class KubectlError(RuntimeError):
    """kubectl ended with an error; the message is what it printed."""


@dataclass(frozen=True)
class Kubectl:
    """`kubectl("get", "pods")` runs `kubectl -n NAMESPACE get pods` and returns its output."""

    program: Path
    kubeconfig: Path
    namespace: str = "default"

    def __call__(self, *arguments: str, stdin: str | None = None, limit_s: float = CALL_LIMIT_S) -> str:
        """
        Raises:
            KubectlError: with kubectl's own message.
        """
        done = subprocess.run(
            [str(self.program), "-n", self.namespace, *arguments],
            input=stdin,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    def apply(self, *objects: dict[str, Any]) -> None:
        """Server-side apply of whole manifests."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self("apply", "--server-side", "--field-manager=tests", "-f", "-", stdin=json.dumps(document))

    def condition(self, kind: str, name: str, condition: str) -> str | None:
        """The status ("True", "False", "Unknown") of one condition; None when it is absent."""
        for found in self.json("get", kind, name).get("status", {}).get("conditions") or []:
            if found["type"] == condition:
                return str(found["status"])
        return None

    def within(self, namespace: str) -> Kubectl:
        return Kubectl(self.program, self.kubeconfig, namespace)
