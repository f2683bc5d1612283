"""What crosses the socket between server and engine host: typed messages, pickled, framed by their length, bounded.

Both ends are the same program at the same version and the socket is a socketpair, so pickle is no door for anybody;
a reader still refuses whatever is not one of these types.
"""

from __future__ import annotations

import copyreg
import pickle
import struct
from dataclasses import dataclass
from typing import Final, Literal

from moefleet_runtime.engine.base import EngineInfo, EngineLoad, EngineRequest, EngineSettings
from moefleet_runtime.engine.prefixes import PrefixChanges
from moefleet_runtime.host.batches import Fields

# The largest message is a prompt of 2^24 tokens or a step of all sequences; beyond this the stream is out of step.
MAX_FRAME_BYTES: Final = 256 << 20
_HEADER: Final = struct.Struct(">I")
# In the pickles of each request a number stands for these, which the reader knows by heart; by name it would look for their modules each
# time. From the range that copyreg leaves to everybody; both ends import this module.
_NUMBERED: Final = (
    (240, "moefleet_runtime.host.messages", "Submit"),
    (241, "moefleet_runtime.host.messages", "Deltas"),
    (242, "moefleet_runtime.engine.base", "EngineRequest"),
    (243, "moefleet_runtime.engine.base", "Finish"),
)
for _number, _module, _name in _NUMBERED:
    copyreg.add_extension(_module, _name, _number)


# -- server to host
@dataclass(frozen=True, slots=True)
class Make:
    engine: str
    settings: EngineSettings


@dataclass(frozen=True, slots=True)
class Submit:
    request: EngineRequest

    def __reduce__(self) -> tuple[type[Submit], tuple[EngineRequest]]:
        return Submit, (self.request,)


@dataclass(frozen=True, slots=True)
class Abort:
    request_id: str


@dataclass(frozen=True, slots=True)
class Stop:
    pass


# -- host to server
@dataclass(frozen=True, slots=True)
class Started:
    info: EngineInfo


@dataclass(frozen=True, slots=True)
class NotStarted:
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Deltas:
    # Of `host.batches`.
    batch: list[Fields]

    def __reduce__(self) -> tuple[type[Deltas], tuple[list[Fields]]]:
        # By itself a frozen dataclass asks for its fields at both ends; this is the message that comes at every step.
        return Deltas, (self.batch,)


@dataclass(frozen=True, slots=True)
class Refused:
    """submit() raised: the engine does not have this request."""

    request_id: str
    kind: Literal["full", "invalid", "dead"]
    message: str
    # As RequestInvalid's.
    field: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    load: EngineLoad


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What came into the engine's cache and went; the first one, maybe empty, says that the engine knows."""

    changes: PrefixChanges


@dataclass(frozen=True, slots=True)
class Died:
    reason: str


ToHost = Make | Submit | Abort | Stop
ToServer = Started | NotStarted | Deltas | Refused | Load | Prefixes | Died
_TO_HOST: Final = (Make, Submit, Abort, Stop)
_TO_SERVER: Final = (Started, NotStarted, Deltas, Refused, Load, Prefixes, Died)


class FrameError(Exception):
    """The other side sent something that is no message: nothing after it can be trusted."""


def encode(message: ToHost | ToServer) -> bytes:
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"{type(message).__name__} of {len(body)} bytes; at most {MAX_FRAME_BYTES} are sent")
    return _HEADER.pack(len(body)) + body


class FrameReader:
    """Bytes in as they come, messages out as they are complete."""

    def __init__(self, allowed: tuple[type, ...]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    @classmethod
    def of_host(cls) -> FrameReader:
        return cls(_TO_HOST)

    @classmethod
    def of_server(cls) -> FrameReader:
        return cls(_TO_SERVER)

    def feed(self, data: bytes) -> list[object]:
        self._buffer += data
        messages: list[object] = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, at)
            if size > MAX_FRAME_BYTES:
                raise FrameError(f"frame of {size} bytes; at most {MAX_FRAME_BYTES} are read")
            if len(self._buffer) - at < _HEADER.size + size:
                break
            begin = at + _HEADER.size
            message = pickle.loads(memoryview(self._buffer)[begin : begin + size])
            if not isinstance(message, self._allowed):
                raise FrameError(f"a {type(message).__name__} where it does not belong")
            messages.append(message)
            at = begin + size
        del self._buffer[:at]
        return messages
