"""From a typed source to its listing and the store that its files are read from.

Environment (from a Secret of the user's, by reference): HF_TOKEN, HF_ENDPOINT (a mirror), HF_HUB_OFFLINE; AWS_* and
GOOGLE_* as those clouds' own tools read them; MOEFLEET_WEIGHTS_AUTHORIZATION, the Authorization header for https://.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import obstore
from obstore.store import GCSStore, HTTPStore, S3Store

from moefleet_weights.failing import WeightsError
from moefleet_weights.listing import (
    MAX_FILES,
    MAX_SUMS_BYTES,
    SUMS_NAME,
    Checksum,
    Listing,
    RemoteFile,
    make_listing,
    parse_sums,
    shard_names,
)
from moefleet_weights.source import BucketSource, HubSource, Remote, WebSource
from moefleet_weights.stores import NO_RETRIES, ObjectStoreReader, client_options, explained, patiently
from moefleet_weights.tensors import INDEX_NAME, MAX_INDEX_BYTES, parse_index

HUB: Final = "https://huggingface.co"
MAX_API_BYTES: Final = 64 << 20
# Of a web server, which has no listing: what checkpoints are made of, beside the shards that the index names.
WEB_NAMES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

Environment = Mapping[str, str]


async def open_remote(source: Remote, environment: Environment) -> tuple[Listing, ObjectStoreReader]:
    """Asks the server. Raises WeightsError; ModelSourceUnreachable after a few tries."""
    match source:
        case HubSource():
            return await _hub(source, environment)
        case BucketSource():
            return await _bucket(source, environment)
        case WebSource():
            return await _web(source, environment)


def is_offline(environment: Environment) -> bool:
    return environment.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


async def _hub(source: HubSource, environment: Environment) -> tuple[Listing, ObjectStoreReader]:
    """The hub's API: commit of the revision, then names, sizes and checksums of its files."""
    endpoint = (environment.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = environment.get("HF_TOKEN", "")
    api = ObjectStoreReader(
        _http(endpoint, {"authorization": f"Bearer {token}"} if token else {}), str(source)
    )
    base = f"api/models/{source.repository}"
    info = _object(await api.whole(f"{base}/revision/{source.revision}", MAX_API_BYTES), str(source))
    commit = info.get("sha")
    if not isinstance(commit, str) or len(commit) != 40 or (source.pinned and commit != source.revision):
        raise WeightsError(
            "ModelSourceMissing", f"{source}: wanted a commit of 40 hex digits, the hub says {commit!r:.80}"
        )
    origin = f"hf://{source.repository}@{commit}"
    tree = _json(await api.whole(f"{base}/tree/{commit}", MAX_API_BYTES), origin)
    try:
        files = [_hub_file(entry) for entry in tree if entry["type"] == "file"]
        said = {s["rfilename"] for s in info["siblings"] if "/" not in s["rfilename"]}
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            "ModelSourceUnreachable", f"{origin}: the hub's answer is not one: {error!r:.200}"
        ) from error
    # The tree comes in pages of a thousand; a checkpoint with more files in one folder is not known.
    if lacking := said - {f.name for f in files}:
        raise WeightsError(
            "CheckpointUnsupported",
            f"{origin}: the hub lists {len(files)} files and leaves out {min(lacking)}",
        )
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return make_listing(origin, files), ObjectStoreReader(
        _http(f"{endpoint}/{source.repository}/resolve/{commit}", headers), origin
    )


def _hub_file(entry: Mapping[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    # Large files have their SHA-256; small ones are blobs of git.
    checksum = Checksum("sha256", str(lfs["oid"])) if lfs else Checksum("git-sha1", str(entry["oid"]))
    return RemoteFile(str(entry["path"]), int(entry["size"]), checksum)


async def _bucket(source: BucketSource, environment: Environment) -> tuple[Listing, ObjectStoreReader]:
    reader = ObjectStoreReader(_bucket_store(source, environment), str(source))
    found = await patiently(lambda: _list(reader))
    files = [RemoteFile(m["path"], m["size"], etag=m.get("e_tag")) for m in found["objects"]]
    sums: dict[str, str] = {}
    if any(f.name == SUMS_NAME for f in files):
        sums = parse_sums(
            (await reader.whole(SUMS_NAME, MAX_SUMS_BYTES)).decode("utf-8", "replace"),
            f"{source}/{SUMS_NAME}",
        )
    return make_listing(str(source), (_with_sum(f, sums) for f in files)), reader


async def _list(reader: ObjectStoreReader) -> Any:
    with explained(reader.origin):
        return await obstore.list_with_delimiter_async(reader.store)


def _bucket_store(source: BucketSource, environment: Environment) -> S3Store | GCSStore:
    prefix = source.prefix or None
    if source.scheme == "gs":
        # As AWS_ENDPOINT_URL for s3: a private endpoint.
        base = environment.get("GOOGLE_BASE_URL") or ""
        at: dict[str, Any] = {"base_url": base} if base else {}
        options = client_options(plain=base.startswith("http://"))
        return GCSStore(source.bucket, prefix=prefix, client_options=options, retry_config=NO_RETRIES, **at)
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    given: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    return S3Store(
        source.bucket,
        prefix=prefix,
        client_options=client_options(plain=endpoint.startswith("http://")),
        retry_config=NO_RETRIES,
        **given,
    )


async def _web(source: WebSource, environment: Environment) -> tuple[Listing, ObjectStoreReader]:
    """By SHA256SUMS where the folder has one (`moefleet convert` writes it), else by the index and the usual names."""
    secret = environment.get("MOEFLEET_WEIGHTS_AUTHORIZATION", "")
    reader = ObjectStoreReader(_http(source.url, {"authorization": secret} if secret else {}), str(source))
    sums: dict[str, str] = {}
    if await reader.stat(SUMS_NAME) is not None:
        sums = parse_sums(
            (await reader.whole(SUMS_NAME, MAX_SUMS_BYTES)).decode("utf-8", "replace"),
            f"{source}/{SUMS_NAME}",
        )
        names = [name for name in sums if "/" not in name]
    else:
        names = [*WEB_NAMES]
        if await reader.stat(INDEX_NAME) is not None:
            index = parse_index(await reader.whole(INDEX_NAME, MAX_INDEX_BYTES), f"{source}/{INDEX_NAME}")
            names += [INDEX_NAME, *shard_names(index)]
        else:
            names.append("model.safetensors")
    files = []
    for name in names[:MAX_FILES]:
        file = await reader.stat(name)
        if file is not None:
            files.append(_with_sum(file, sums))
        elif name in sums or name not in (*WEB_NAMES, "model.safetensors"):
            raise WeightsError(
                "ModelSourceMissing",
                f"{source}: {SUMS_NAME if sums else INDEX_NAME} names {name}, which is not there",
            )
    return make_listing(str(source), files), reader


def _with_sum(file: RemoteFile, sums: Mapping[str, str]) -> RemoteFile:
    digest = sums.get(file.name)
    return RemoteFile(file.name, file.bytes, Checksum("sha256", digest) if digest else None, file.etag)


def _http(url: str, headers: Mapping[str, str]) -> HTTPStore:
    plain = urlsplit(url).scheme == "http"
    options = client_options(headers, plain=plain)
    return HTTPStore.from_url(url, client_options=options, retry_config=NO_RETRIES)


def _object(raw: bytes, origin: str) -> dict[str, Any]:
    data = _json(raw, origin)
    if not isinstance(data, dict):
        raise WeightsError(
            "ModelSourceUnreachable",
            f"{origin}: wanted a JSON object from the hub, found {type(data).__name__}",
        )
    return data


def _json(raw: bytes, origin: str) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            "ModelSourceUnreachable", f"{origin}: the hub's answer is not JSON: {error!s:.200}"
        ) from error
