"""Weights that are not here yet: a child process fetches them, the server goes on answering, and says how far it is.

The child (`python -m moefleet_weights`) shares nothing with the server but a pipe: hours of checksums and disk writes do
not delay a probe, and a kill of either leaves a cache that the next start goes on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import structlog
from moefleet_weights.cache import Cache
from moefleet_weights.disk import RealDisk
from moefleet_weights.failing import WeightsError

from moefleet_runtime.ending import FatalError

log = structlog.get_logger()

# A snapshot can be evicted between the end of the fetch and our lock on it; that twice in a row is not chance.
TRIES: Final = 3
MAX_LINE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FetchProgress:
    done_bytes: int
    total_bytes: int
    # For people: "37 % of 236 GB, 1.1 GB/s, 2 min left".
    text: str


@dataclass(frozen=True, slots=True)
class Fetched:
    folder: Path
    # What it was resolved to: hf://org/name@commit.
    origin: str
    # Held open, it keeps the snapshot from being evicted.
    lock: IO[bytes]


async def fetch_weights(
    source: str, cache: str, *, precision: str, tell: Callable[[FetchProgress], None]
) -> Fetched:
    """Raises FatalError. Cancelled, it ends its child."""
    if not cache:
        raise FatalError(
            "ConfigurationInvalid", f"model.cache: wanted a folder for the weights of {source}, found none"
        )
    for _ in range(TRIES):
        said = await _run_child(source, cache, precision, tell)
        try:
            held = Cache(Path(cache), RealDisk()).use(str(said["key"]))
        except WeightsError as error:
            raise FatalError(error.reason, error.message) from error
        if held is not None:
            return Fetched(Path(said["folder"]), str(said["origin"]), held)
        log.warning("weights evicted before they were used", source=source)
    raise FatalError("DiskFull", f"{cache}: {source} was evicted {TRIES} times before it could be used")


async def _run_child(
    source: str, cache: str, precision: str, tell: Callable[[FetchProgress], None]
) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moefleet_weights", "--die-with-parent",
        "--source", source, "--cache", cache, "--precision", precision,
        stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL, limit=MAX_LINE_BYTES,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        async for raw in child.stdout:
            line = json.loads(raw)
            if (progress := line.get("progress")) is not None:
                tell(FetchProgress(progress["doneBytes"], progress["totalBytes"], progress["text"]))
            elif (note := line.get("note")) is not None:
                log.warning("fetch", note=note)
            elif (error := line.get("error")) is not None:
                raise FatalError(error["reason"], error["message"])
            elif (snapshot := line.get("snapshot")) is not None:
                return dict(snapshot)
        status = await child.wait()
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        raise FatalError("FetchFailed", f"{source}: the process that fetches it ended without a word ({how})")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
