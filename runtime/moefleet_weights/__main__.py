"""`python -m moefleet_weights`: fetches one source into a cache, in a process of its own, and says how it goes.

The runtime starts it (a fetch of hours must not share a process with the server that answers probes), and so may a Job
that fills a node's cache beforehand. One JSON object a line on standard output: {"progress": ...}, {"note": ...}, and at
the end {"snapshot": ...} or {"error": {"reason", "message"}} with exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moefleet_weights.cache import KEEP_FREE_BYTES, Cache
from moefleet_weights.check import Expected
from moefleet_weights.disk import RealDisk
from moefleet_weights.download import Limits
from moefleet_weights.failing import WeightsError
from moefleet_weights.fetch import Fetch
from moefleet_weights.progress import Progress
from moefleet_weights.source import BucketSource, HubSource, WebSource, parse_source

PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.die_with_parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        source = parse_source(options.source)
        if not isinstance(source, HubSource | BucketSource | WebSource):
            raise WeightsError(
                "ModelSourceInvalid",
                f"{options.source}: wanted hf, s3, gs or https: others are mounted, not fetched",
            )
        disk = RealDisk()
        defaults = Limits()
        fetch = Fetch(
            source=source,
            cache=Cache(options.cache, disk, keep_free_bytes=options.keep_free_bytes),
            disk=disk,
            environment=os.environ,
            expected=Expected(options.precision, not options.no_tokenizer),
            limits=Limits(
                connections=options.connections,
                part_bytes=options.part_bytes,
                tries=options.tries or defaults.tries,
            ),
            tell=lambda progress: _say(progress=_progress(progress)),
            note=lambda message: _say(note=message),
        )
        snapshot = asyncio.run(fetch.run())
    except WeightsError as error:
        _say(error={"reason": error.reason, "message": error.message})
        return 1
    _say(
        snapshot={
            "key": snapshot.key,
            "folder": str(snapshot.folder),
            "origin": snapshot.origin,
            "bytes": snapshot.bytes,
        }
    )
    return 0


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "stage": progress.stage,
        "doneBytes": progress.done_bytes,
        "totalBytes": progress.total_bytes,
        "bytesPerS": progress.bytes_per_s,
        "text": str(progress),
    }


def _say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def _parser() -> argparse.ArgumentParser:
    defaults = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m moefleet_weights",
        description="Fetches a checkpoint into a cache folder.",
        allow_abbrev=False,
    )
    parser.add_argument("--source", required=True, metavar="URL", help="hf://, s3://, gs:// or https://")
    parser.add_argument("--cache", required=True, metavar="DIR", type=Path)
    parser.add_argument("--precision", choices=("FP8", "BF16", "Auto"), default="Auto")
    parser.add_argument("--no-tokenizer", action="store_true", help="do without tokenizer.json")
    parser.add_argument("--connections", type=int, default=defaults.connections)
    parser.add_argument("--part-bytes", type=int, default=defaults.part_bytes)
    parser.add_argument(
        "--tries", type=int, default=defaults.tries, help="without one byte, before giving up"
    )
    parser.add_argument("--keep-free-bytes", type=int, default=KEEP_FREE_BYTES)
    parser.add_argument("--die-with-parent", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
