from typing import NamedTuple


class RequestError(RuntimeError):
    """As the snapshot: a RuntimeError, so that whoever catches that first takes one request's error for the engine's end."""


class ErrorResponse(NamedTuple):
    client_id: int
    error_msg: str
    request_id: int
