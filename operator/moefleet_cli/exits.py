"""Exit codes: an interface for scripts. Listed by `moefleet --help`."""

from __future__ import annotations

from enum import IntEnum

import grpc


class Exit(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    UNKNOWN_MODEL = 4
    BUSY = 5
    REFUSED = 6
    CLUSTER = 7
    CUT = 8
    INTERRUPTED = 130


MEANINGS: dict[Exit, str] = {
    Exit.OK: "answered",
    Exit.FAILED: "any other error",
    Exit.USAGE: "wrong arguments",
    Exit.UNAVAILABLE: "no gateway or no replica in time (UNAVAILABLE, DEADLINE_EXCEEDED)",
    Exit.UNKNOWN_MODEL: "no such model (NOT_FOUND)",
    Exit.BUSY: "too many requests wait (RESOURCE_EXHAUSTED); try again later",
    Exit.REFUSED: "the request itself is wrong (INVALID_ARGUMENT, OUT_OF_RANGE, UNIMPLEMENTED)",
    Exit.CLUSTER: "the API server cannot be reached, refuses, or has no MoEFleets",
    Exit.CUT: "the stream broke after tokens had come",
    Exit.INTERRUPTED: "interrupted from the keyboard",
}

_BY_STATUS: dict[grpc.StatusCode, Exit] = {
    grpc.StatusCode.UNAVAILABLE: Exit.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND: Exit.UNKNOWN_MODEL,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exit.BUSY,
    grpc.StatusCode.INVALID_ARGUMENT: Exit.REFUSED,
    grpc.StatusCode.OUT_OF_RANGE: Exit.REFUSED,
    grpc.StatusCode.UNIMPLEMENTED: Exit.REFUSED,
}


def exit_of(status: grpc.StatusCode, *, begun: bool = False) -> Exit:
    """begun: tokens had already come, so trying again would repeat them."""
    return Exit.CUT if begun else _BY_STATUS.get(status, Exit.FAILED)


def help_text() -> str:
    return "Exit codes: " + "; ".join(f"{code.value} {meaning}" for code, meaning in MEANINGS.items()) + "."
