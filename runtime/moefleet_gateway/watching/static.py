"""Fleets and replicas from a JSON file, read again when it changes: for trying the gateway by hand, and for tests.

{"fleets": [{"namespace", "name", "model", "uid"?, "created"?, "engine"?, "contextLength"?,
             "limits"?: {"queuedRequests", "hold", "streamDuration"},
             "readyReplicas"?: 0, "coldStart"?: {"p50": "4m", "p90": "5m"}}],
 "replicas": [{"uid", "fleet": "<namespace>/<name>", "address": "ip:port", "control"?: "ip:port", "name"?,
               "ready"?: true, "draining"?: false}]}
Without `control` a replica counts as serving and its load is what this gateway sent to it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from moefleet_gateway.picking.facts import Fleet, Replica
from moefleet_gateway.watching import SourceError, World
from moefleet_gateway.watching.objects import cold_start, limits

LOOK_EVERY_S = 0.1
log = structlog.get_logger()


class StaticFile:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def run(self, world: World, synced: Callable[[], None]) -> None:
        known: dict[str, Replica] = {}
        seen: bytes | None = None
        looked: tuple[int, int, int] | None = None
        while True:
            # Reading it ten times a second in a thread was 0.005 of a core, 40 % of what an idle picker costs.
            there = self._path.stat()
            if looked == (look := (there.st_ino, there.st_mtime_ns, there.st_size)):
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            content = await asyncio.to_thread(self._path.read_bytes)
            looked = look
            if content != seen:
                try:
                    fleets, replicas = parse(content, str(self._path))
                except SourceError as error:
                    if seen is None:
                        raise
                    log.error("static_file_ignored", error=str(error))
                    seen = content
                    continue
                world.put_fleets(fleets)
                for uid in set(known) - set(replicas):
                    world.drop_replica(uid)
                for uid, replica in replicas.items():
                    if known.get(uid) != replica:
                        world.put_replica(replica)
                known = replicas
                if seen is None:
                    synced()
                seen = content
            await asyncio.sleep(LOOK_EVERY_S)


def parse(content: bytes, name: str) -> tuple[list[Fleet], dict[str, Replica]]:
    try:
        data: dict[str, Any] = json.loads(content)
        fleets = [
            Fleet(
                namespace=f["namespace"],
                name=f["name"],
                uid=f.get("uid", ""),
                created=f.get("created", ""),
                model=f["model"],
                engine=f.get("engine", ""),
                context_length=f.get("contextLength", 0),
                limits=limits(f.get("limits", {})),
                ready_replicas=f.get("readyReplicas"),
                cold_start=cold_start(f.get("coldStart", {})),
            )
            for f in data.get("fleets", ())
        ]
        uids = {f.key: f.uid for f in fleets}
        replicas = {
            r["uid"]: Replica(
                uid=r["uid"],
                name=r.get("name", r["uid"]),
                fleet=r["fleet"],
                fleet_uid=uids.get(r["fleet"], ""),
                address=r["address"],
                control=r.get("control", ""),
                ready=r.get("ready", True),
                draining=r.get("draining", False),
            )
            for r in data.get("replicas", ())
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{name}: {type(error).__name__} {error}") from None
    return fleets, replicas
