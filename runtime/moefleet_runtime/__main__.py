"""`python -m moefleet_runtime`: reads the settings, runs the replica, and ends with an exit code that means something."""

from __future__ import annotations

import os
import signal

if __name__ == "__main__":
    # PID 1 gets no signal that it has no handler for: one that comes while the rest is imported would be lost, and the pod
    # would serve, deleted, with all its GPUs until its grace is over. There is nothing to end yet.
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, lambda number, frame: os._exit(0))

import asyncio
import sys

import structlog
import uvloop

from moefleet_runtime.ending import Exit, Failure, FatalError, termination_log, write_termination
from moefleet_runtime.serving.replica import Replica
from moefleet_runtime.settings import Settings, read_settings


def main() -> int:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    failure: Failure | None
    try:
        settings = read_settings(sys.argv[1:], os.environ)
        code, failure = uvloop.run(_serve(settings))
    except FatalError as error:
        code, failure = error.failure.exit, error.failure
    if failure is not None:
        structlog.get_logger().error("ends", reason=failure.reason, message=failure.message, exit=int(code))
        write_termination(termination_log(dict(os.environ)), failure)
    return int(code)


async def _serve(settings: Settings) -> tuple[Exit, Failure | None]:
    replica = Replica(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, replica.terminate, number.name)
    return await replica.run()


if __name__ == "__main__":
    sys.exit(main())
