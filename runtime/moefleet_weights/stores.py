"""Bytes of a source over the network, through one client (obstore) for the web, hubs and buckets.

Its own retries are off: what is fetched again, and from which byte, `download` decides and shows.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import obstore
from obstore.exceptions import (
    BaseError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import RemoteFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from obstore.store import ObjectStore

# No byte for so long: the connection is dead, whatever TCP thinks.
SILENCE_S: Final = 30
CONNECT_S: Final = 10
# The whole of one request; a range of 16 MiB at 20 kB/s.
REQUEST_S: Final = 900
CHUNK_BYTES: Final = 1 << 20


T = TypeVar("T")


class Interrupted(Exception):  # noqa: N818 - what happened: another try may help
    """The network, or the server for a moment."""


class Store(Protocol):
    """Where the files of a listing are."""

    def read(self, file: RemoteFile, begin: int, end: int) -> AsyncIterator[memoryview]:
        """The bytes [begin, end). Raises Interrupted (anything may have come before), or WeightsError when it is final."""


def client_options(headers: Mapping[str, str] | None = None, *, plain: bool = False) -> Any:
    """`plain`: an address of http:// is meant (a mirror or an endpoint inside the cluster). SSL_CERT_FILE adds authorities."""
    authorities = os.environ.get("SSL_CERT_FILE")
    return {
        **({"root_certificate": Path(authorities).read_bytes()} if authorities else {}),
        "allow_http": plain,
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=SILENCE_S),
        "timeout": timedelta(seconds=REQUEST_S),
        "user_agent": "moefleet",
        **({"default_headers": dict(headers)} if headers else {}),
    }


_STATUS = re.compile(r"non-2xx status code: (\d{3})")
NO_RETRIES: Final[Any] = {"max_retries": 0}


@dataclass(frozen=True, slots=True)
class ObjectStoreReader:
    """`store` is rooted where the names of the listing are."""

    store: ObjectStore
    # For messages.
    origin: str

    async def read(self, file: RemoteFile, begin: int, end: int) -> AsyncIterator[memoryview]:
        what = f"{self.origin}: {file.name}"
        with explained(what):
            result = await obstore.get_async(self.store, file.name, options={"range": (begin, end)})
            meta = result.meta
            if meta["size"] != file.bytes or (file.etag and meta.get("e_tag") not in (None, file.etag)):
                raise WeightsError(
                    "ChecksumMismatch",
                    f"{what} changed while it was fetched: wanted {file.bytes} bytes with the mark {file.etag}, "
                    f"found {meta['size']} with {meta.get('e_tag')}",
                )
            if result.range != (begin, end):
                raise Interrupted(f"{what}: wanted bytes {begin} to {end}, found {result.range}")
            async for chunk in result.stream(CHUNK_BYTES):
                yield memoryview(chunk)

    async def whole(self, name: str, most_bytes: int) -> bytes:
        """A small file, asked for several times. Raises WeightsError; ModelSourceMissing when there is none."""
        return await patiently(lambda: self._whole(name, most_bytes))

    async def _whole(self, name: str, most_bytes: int) -> bytes:
        what = f"{self.origin}: {name}"
        with explained(what):
            result = await obstore.get_async(self.store, name)
            if result.meta["size"] > most_bytes:
                raise WeightsError(
                    "CheckpointUnreadable",
                    f"{what}: wanted at most {most_bytes} bytes, found {result.meta['size']}",
                )
            return bytes(await result.bytes_async())

    async def stat(self, name: str) -> RemoteFile | None:
        """None: there is no such file."""
        return await patiently(lambda: self._stat(name))

    async def _stat(self, name: str) -> RemoteFile | None:
        try:
            with explained(f"{self.origin}: {name}"):
                meta = await obstore.head_async(self.store, name)
        except WeightsError as error:
            if error.reason == "ModelSourceMissing":
                return None
            raise
        return RemoteFile(name, meta["size"], etag=meta.get("e_tag"))


# Tries of a small request, and the wait after the first; it doubles. In all eight seconds.
SMALL_TRIES: Final = 6
SMALL_WAIT_S: float = 0.25


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """`attempt()` again after an Interrupted; the last becomes ModelSourceUnreachable."""
    for i in range(SMALL_TRIES - 1):
        try:
            return await attempt()
        except Interrupted:
            await asyncio.sleep(SMALL_WAIT_S * 2**i)
    try:
        return await attempt()
    except Interrupted as error:
        raise WeightsError("ModelSourceUnreachable", f"{error} ({SMALL_TRIES} tries)") from error


@contextmanager
def explained(what: str) -> Iterator[None]:
    try:
        yield
    except (NotFoundError, FileNotFoundError) as error:
        raise WeightsError("ModelSourceMissing", f"{what}: the server has no such file") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise WeightsError(
            "ModelSourceForbidden",
            f"{what}: the server refuses ({_first_line(error)}); check model.credentials",
        ) from error
    except PreconditionError as error:
        raise WeightsError("ChecksumMismatch", f"{what} changed while it was fetched") from error
    except NotSupportedError as error:
        raise WeightsError(
            "ModelSourceUnreachable", f"{what}: the server does not answer requests for ranges"
        ) from error
    except (BaseError, OSError, TimeoutError) as error:
        # Of a listing the client tells the status only in words.
        status = _STATUS.search(str(error))
        match int(status[1]) if status else 0:
            case 401 | 403:
                raise WeightsError(
                    "ModelSourceForbidden",
                    f"{what}: the server refuses ({_first_line(error)}); check model.credentials",
                ) from error
            case 404:
                raise WeightsError("ModelSourceMissing", f"{what}: the server knows no such place") from error
            case _:
                pass
        raise Interrupted(f"{what}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """The rest is the client's own debugging."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]:.300}"
