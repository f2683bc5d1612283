"""A replica of real processes whose engine host finds the fake."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from moefleet_runtime.process_tree import ProcessId, descendants, kill, processes
from moefleet_runtime_rig import ReplicaProcess, replica

from moefleet_trtllm_fake import INSTALLED, VARIABLE, write_checkpoint

_ROOT = Path(__file__).resolve().parents[3]
WORKERS = 2


@contextlib.asynccontextmanager
async def trtllm_replica(
    tmp_path: Path,
    *,
    behaviour: dict[str, Any] | None = None,
    checkpoint: dict[str, Any] | None = None,
    engine: dict[str, Any] | None = None,
    wait: bool = True,
    stall_s: float = 60.0,
) -> AsyncIterator[ReplicaProcess]:
    """Two ranks under tensor parallelism, tokens one at a time, 2 ms a step; `engine` is merged into its configuration."""
    model = write_checkpoint(tmp_path / "model", **(checkpoint or {}))
    args = {"gpuMemoryGib": 80, "autotunerCache": str(tmp_path / "autotuner"), "stream_interval": 1}
    config = {
        "fleet": "team/chat",
        "model": {"name": "chat-model", "source": model.as_uri(), "contextLength": 4096},
        "engine": {
            "type": "TensorRTLLM",
            "parallelism": {"tensor": WORKERS, "expert": WORKERS, "attentionData": False},
            "args": args,
            **(engine or {}),
        },
        "listen": "127.0.0.1:0",
        "control": {"listen": "127.0.0.1:0"},
        "metricsListen": "127.0.0.1:0",
        "limits": {"stallS": stall_s},
    }
    environment = {
        "MOEFLEET_RUNTIME_CONFIG": json.dumps(config),
        "PYTHONPATH": os.pathsep.join(map(str, (_ROOT / "runtime", _ROOT / "protos", INSTALLED))),
        VARIABLE: json.dumps(behaviour or {}),
    }
    async with replica(tmp_path, engine="TensorRTLLM", environment=environment, wait=wait) as served:
        try:
            yield served
        finally:
            await _end(served)


async def _end(served: ReplicaProcess) -> None:
    """A server that is killed outside of a PID namespace leaves workers, which hold its standard error open."""
    if served.process.returncode is None:
        theirs = descendants(served.pid)
        served.process.kill()
        # Before anybody waits: asyncio holds an exit back until the pipes are closed.
        kill(each.pid for each in theirs)


def engine_processes(served: ReplicaProcess) -> set[ProcessId]:
    """The host and all that it started."""
    host = served.host_pid()
    return {each for each in processes() if each.pid == host} | set(descendants(host))


def left_of(started: set[ProcessId]) -> set[ProcessId]:
    return started & set(processes())
