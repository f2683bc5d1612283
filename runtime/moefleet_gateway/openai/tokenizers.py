"""Tokenizers and chat templates of fleets, fetched from their replicas into the gateway pod's own folder.

They stay there while the pod lives: SMG, or the picker, may restart while a fleet has no replica.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import grpc
from smg_grpc_proto.generated import common_pb2, trtllm_service_pb2_grpc

from moefleet_gateway import headers as names
from moefleet_gateway.picking.facts import Fleet, Replica

# As SMG's own limit; a replica gives at most 64 MiB of files.
BUNDLE_MAX_BYTES = 64 << 20
FILES_MAX = 32
FETCH_TIMEOUT_S = 60.0
SHA_HEX = 16
_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0))


class BundleError(Exception):
    """The message says what is wrong with what a replica gave."""


async def fetch(replica: Replica, fleet: Fleet) -> bytes:
    """A zip archive. Raises BundleError or grpc.aio.AioRpcError."""
    metadata = ((names.POD_UIDS, replica.uid), (names.MODEL, fleet.model))
    data, sha256 = bytearray(), ""
    async with grpc.aio.insecure_channel(replica.address, options=_CHANNEL_OPTIONS) as channel:
        stub = trtllm_service_pb2_grpc.TrtllmServiceStub(channel)
        request = common_pb2.GetTokenizerRequest()
        async for chunk in stub.GetTokenizer(request, timeout=FETCH_TIMEOUT_S, metadata=metadata):
            data += chunk.data
            sha256 = chunk.sha256
            if len(data) > BUNDLE_MAX_BYTES:
                raise BundleError(f"more than {BUNDLE_MAX_BYTES} bytes")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256.lower():
        raise BundleError(f"its SHA-256 is {found}, the replica says {sha256 or 'nothing'}")
    return bytes(data)


class Store:
    """`<root>/<fleet uid>/<first of the sha256>/tokenizer.json ...`; one bundle a fleet, replaced whole."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, fleet: Fleet) -> Path | None:
        """What an earlier picker of this pod put there."""
        home = self._root / _name(fleet)
        found = sorted(home.glob("*/tokenizer.json")) if home.is_dir() else []
        return found[-1].parent if found else None

    async def put(self, fleet: Fleet, data: bytes) -> Path:
        return await asyncio.to_thread(self._put, fleet, data)

    async def keep(self, fleets: list[Fleet]) -> None:
        """Forgets those of all other fleets."""
        await asyncio.to_thread(self._keep, {_name(fleet) for fleet in fleets})

    def _put(self, fleet: Fleet, data: bytes) -> Path:
        home = self._root / _name(fleet)
        folder = home / hashlib.sha256(data).hexdigest()[:SHA_HEX]
        if folder.is_dir():
            return folder
        fresh = home / f".{folder.name}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        unpack(data, fresh)
        fresh.rename(folder)
        for other in home.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder

    def _keep(self, known: set[str]) -> None:
        if not self._root.is_dir():
            return
        for home in self._root.iterdir():
            if home.name not in known:
                shutil.rmtree(home, ignore_errors=True)


def unpack(data: bytes, folder: Path) -> None:
    """Plain files only, by their bare names: a replica is not trusted with paths or sizes."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if len(entries) > FILES_MAX:
                raise BundleError(f"{len(entries)} files, at most {FILES_MAX}")
            left = BUNDLE_MAX_BYTES
            for entry in entries:
                if entry.filename != Path(entry.filename).name:
                    raise BundleError(f"the name {entry.filename!r} is a path")
                with archive.open(entry) as file:
                    content = file.read(left + 1)
                left -= len(content)
                if left < 0:
                    raise BundleError(f"more than {BUNDLE_MAX_BYTES} bytes unpacked")
                (folder / entry.filename).write_bytes(content)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise BundleError(f"not a zip archive: {error}") from None
    if not (folder / "tokenizer.json").is_file():
        raise BundleError("no tokenizer.json")


def _name(fleet: Fleet) -> str:
    return hashlib.sha256(f"{fleet.key} {fleet.uid}".encode()).hexdigest()[:SHA_HEX]
