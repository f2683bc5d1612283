"""Logs are events with fields: one JSON line for each decision, nothing when nothing changed."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

_BEFORE: list[Any] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
]


def configure(level: str, pod_name: str) -> None:
    """Our lines and those of libraries (kopf, asyncio, aiohttp) in the same form, to stderr."""
    structlog.configure(
        processors=[*_BEFORE, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_BEFORE,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    # Who called, in which thread and process: no line of ours says it, and finding it out was a third of what a line cost.
    logging._srcfile = None  # as the manual of logging has it
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One line for each request is nothing that somebody decided.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
