"""`python -m moefleet_operator` as a child process: its environment, its log lines, its metrics, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# From nothing to synced: imports take 2 s on a busy two-core machine, and 15 s of an old Lease may have to pass.
START_LIMIT_S = 60.0
END_LIMIT_S = 30.0
POLL_S = 0.1


@dataclass
class OperatorProcess:
    name: str
    namespace: str
    kubeconfig: Path
    folder: Path
    gateway: bool = False
    watch_namespaces: tuple[str, ...] = ()
    control_key_file: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> OperatorProcess:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OPERATOR_NAMESPACE": self.namespace,
            "POD_NAME": self.name,
            "KUBECONFIG": str(self.kubeconfig),
            "MOEFLEET_METRICS_LISTEN": "127.0.0.1:0",
            "MOEFLEET_GATEWAY_ENABLED": "true" if self.gateway else "false",
            "MOEFLEET_WATCH_NAMESPACES": ",".join(self.watch_namespaces),
            **self.environment,
        }
        if self.control_key_file is not None:
            environment["MOEFLEET_CONTROL_KEY_FILE"] = str(self.control_key_file)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                # The kernel ends it with us, whatever happens to the test run.
                ["setpriv", "--pdeathsig", "KILL", "--", sys.executable, "-m", "moefleet_operator"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self

    @property
    def log_file(self) -> Path:
        return self.folder / f"{self.name}.log"

    def lines(self) -> list[dict[str, Any]]:
        """JSON lines; others come as {"text": line}."""
        return list(_parsed(self.log_file.read_text(errors="replace")))

    def said(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == event]

    @property
    def port(self) -> int:
        started = self.said("Started")
        if not started:
            raise LookupError(f"{self.name} has not started yet")
        return int(started[-1]["port"])

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def ready(self) -> bool:
        try:
            return self.get("/readyz")[0] == 200
        except (LookupError, OSError):
            return False

    def leads(self) -> bool:
        return self.metric("moefleet_operator_leader") == 1.0

    def metric(self, name: str) -> float:
        """A sample by its whole name with labels; 0 when it is absent."""
        try:
            text = self.get("/metrics")[1]
        except (LookupError, OSError):
            return 0.0
        for line in text.splitlines():
            if line.startswith(name) and line[len(name) : len(name) + 1] == " ":
                return float(line.rpartition(" ")[2])
        return 0.0

    def wait(self, what: str, ask: Callable[[], object], limit_s: float = START_LIMIT_S) -> None:
        """Raises TimeoutError with the end of the log."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(
                    f"{self.name} ended with {self.process.returncode} before {what}:\n{self.tail()}"
                )
            if ask():
                return
            time.sleep(POLL_S)
        raise TimeoutError(f"{what}: not within {limit_s:g} s:\n{self.tail()}")

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def resident_mib(self) -> float:
        assert self.process is not None
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise LookupError("no VmRSS")

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_LIMIT_S)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(END_LIMIT_S)


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        yield value if isinstance(value, dict) else {"text": line}
