"""OCI image archives and their layers, written with the standard library; pure but for the files named in the arguments."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

# Level 1: a layer is read once or twice on the machine that wrote it, so time counts and size hardly does.
GZIP_LEVEL = 1
CHUNK_BYTES = 1 << 20
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True, slots=True)
class Layer:
    """A packed layer on disk. `digest` is of the packed bytes, `diff_id` of the tar inside."""

    path: Path
    digest: str
    diff_id: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Image:
    """What `docker inspect` would show of an image, and its layers from the bottom up."""

    reference: str
    layers: Sequence[Layer]
    entrypoint: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder or file that becomes `prefix` in a layer.

    Without `keep_as_is` times are 0 and everybody may read. A system's tree stays as it is: it has files that only root reads, and
    .pyc files that name their source's time.
    """

    source: Path
    prefix: str
    leave_out: Callable[[str], bool] = lambda name: False
    keep_as_is: bool = False


def pack_layer(target: Path, trees: Iterable[Tree], folders: Iterable[str] = ()) -> Layer:
    """Writes a layer to `target`; everything belongs to root. `folders` are made empty."""
    packed, unpacked = hashlib.sha256(), hashlib.sha256()
    with target.open("wb") as file:
        sink = _Hashing(file, packed)
        # No file name and no time in the gzip header: the same content is the same digest.
        with gzip.GzipFile("", "wb", GZIP_LEVEL, cast(IO[bytes], sink), mtime=0) as squeezed:
            stream = _Hashing(squeezed, unpacked)
            with tarfile.open(fileobj=cast(IO[bytes], stream), mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for name in folders:
                    entry = tarfile.TarInfo(name.strip("/"))
                    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(entry)
                for tree in trees:
                    _add(tar, tree)
    return Layer(
        target, f"sha256:{packed.hexdigest()}", f"sha256:{unpacked.hexdigest()}", target.stat().st_size
    )


def _add(tar: tarfile.TarFile, tree: Tree) -> None:
    prefix = tree.prefix.strip("/")
    for parent in reversed(Path(prefix).parents):
        # Parents are named in every layer, or the unpacker makes them with a mode of its own.
        if parent.name and parent.as_posix() not in tar.getnames():
            entry = tarfile.TarInfo(parent.as_posix())
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    for path, name in _walk(tree.source, prefix):
        inside = name.removeprefix(prefix).lstrip("/")
        if not name or (inside and tree.leave_out(inside)):
            continue
        entry = tar.gettarinfo(path, name)
        if entry is None:  # a socket
            continue
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.pax_headers = {}
        if tree.keep_as_is:
            entry.mtime = int(entry.mtime)
        else:
            # Temporary folders and careful umasks are closed to the user that the image runs as.
            entry.mtime, entry.mode = (
                0,
                entry.mode | (0o555 if entry.isdir() or entry.mode & 0o100 else 0o444),
            )
        if entry.isreg():
            with path.open("rb") as content:
                tar.addfile(entry, content)
        else:
            tar.addfile(entry)


def _walk(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    yield source, name
    if source.is_dir() and not source.is_symlink():
        for child in sorted(source.iterdir()):
            yield from _walk(child, f"{name}/{child.name}".lstrip("/"))


def write_archive(target: Path, images: Sequence[Image], leave_out: Collection[str] = ()) -> None:
    """One archive for `ctr images import`: all images, each shared layer once.

    `leave_out` are digests of layers that whoever imports it has already.
    """
    index: list[dict[str, Any]] = []
    with tarfile.open(target, "w") as tar:
        there = set(leave_out)

        def put(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            tar.addfile(entry, io.BytesIO(content))

        def put_blob(content: bytes) -> str:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if digest not in there:
                put(_blob(digest), content)
                there.add(digest)
            return digest

        put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for image in images:
            config, manifest = documents(image)
            put_blob(config)
            digest = put_blob(manifest)
            index.append(_index_entry(image.reference, digest, len(manifest)))
            for layer in image.layers:
                if layer.digest not in there:
                    tar.add(layer.path, _blob(layer.digest), filter=_plain)
                    there.add(layer.digest)
        put("index.json", json.dumps({"schemaVersion": 2, "manifests": index}).encode())


def documents(image: Image) -> tuple[bytes, bytes]:
    """The image's config and manifest."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, **image.environment}
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in image.layers]},
            "config": {
                "Entrypoint": list(image.entrypoint),
                "Env": [f"{k}={v}" for k, v in environment.items()],
                "WorkingDir": "/",
                "User": image.user,
            },
        }
    ).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {
                "mediaType": CONFIG_TYPE,
                "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
                "size": len(config),
            },
            "layers": [
                {"mediaType": LAYER_TYPE, "digest": layer.digest, "size": layer.size_bytes}
                for layer in image.layers
            ],
        }
    ).encode()
    return config, manifest


def _index_entry(reference: str, digest: str, size_bytes: int) -> dict[str, Any]:
    return {
        "mediaType": MANIFEST_TYPE,
        "digest": digest,
        "size": size_bytes,
        "platform": {"architecture": "amd64", "os": "linux"},
        "annotations": {
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[1],
        },
    }


def _blob(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime, entry.mode = 0, 0o644
    return entry


class _Hashing:
    """A writer that hashes what passes."""

    def __init__(self, sink: Any, digest: Any) -> None:
        self._sink, self._digest = sink, digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        self._sink.write(data)
        return len(data)

    def flush(self) -> None:
        self._sink.flush()
