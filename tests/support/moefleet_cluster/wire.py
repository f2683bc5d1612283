"""Pure: as much of the protobuf wire format as the device plugin API needs; its five messages are not worth generated code."""

from __future__ import annotations

from collections.abc import Iterator

_LENGTH_DELIMITED = 2


def text(number: int, value: str | bytes) -> bytes:
    """A string, bytes or message field."""
    content = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(content)) + content


def flag(number: int, value: bool) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field numbers and values of a message whose fields are varints or length-delimited.

    Raises:
        ValueError: for another wire type, or a message that ends early.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        match tag & 7:
            case 0:
                value, at = _read_varint(message, at)
                yield tag >> 3, value
            case 2:
                length, at = _read_varint(message, at)
                if at + length > len(message):
                    raise ValueError(f"field {tag >> 3} needs {length} bytes, {len(message) - at} are left")
                yield tag >> 3, message[at : at + length]
                at += length
            case other:
                raise ValueError(f"field {tag >> 3} has wire type {other}; this API uses 0 and 2 only")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("the message ends inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
