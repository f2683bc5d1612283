"""`model.source`, parsed once for everybody: the operator that mounts, the runtime that fetches, the command line.

Pure: text in, a typed source or WeightsError(ModelSourceInvalid) out. Credentials have no place in a source; they come
by reference, as environment variables from a Secret.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from moefleet_weights.failing import WeightsError

SCHEMES: Final = ("hf", "s3", "gs", "https", "pvc", "oci", "file")
DEFAULT_REVISION: Final = "main"
# Where a pod mounts the claims of pvc:// sources, one folder a claim, and the image of an oci:// source.
CLAIMS_FOLDER: Final = "/var/lib/moefleet/claims"
IMAGE_FOLDER: Final = "/var/lib/moefleet/image"

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_HF_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
# registry[:port]/path[:tag][@digest]
_IMAGE = re.compile(
    r"[a-z0-9.-]+(:\d{1,5})?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?"
)


@dataclass(frozen=True, slots=True)
class FileSource:
    """A folder that is in the container already: in its image, or on a mount of the user's."""

    path: str


@dataclass(frozen=True, slots=True)
class PvcSource:
    """A folder on a claim in the fleet's namespace, mounted read-only."""

    claim: str
    path: str

    @property
    def folder(self) -> str:
        return "/".join(p for p in (CLAIMS_FOLDER, self.claim, self.path) if p)


@dataclass(frozen=True, slots=True)
class OciSource:
    """An image that the kubelet pulls and mounts (ImageVolume)."""

    image: str

    @property
    def folder(self) -> str:
        return IMAGE_FOLDER


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of a Hugging Face hub, or of a mirror of it."""

    repository: str
    revision: str

    @property
    def pinned(self) -> bool:
        """A commit: what it names never changes."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"hf://{self.repository}@{self.revision}"


@dataclass(frozen=True, slots=True)
class BucketSource:
    """A prefix of an object store."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.prefix}"


@dataclass(frozen=True, slots=True)
class WebSource:
    """A folder of a web server. `url` ends without a slash."""

    url: str

    def __str__(self) -> str:
        return self.url


Remote = HubSource | BucketSource | WebSource
Source = FileSource | PvcSource | OciSource | Remote


def parse_source(source: str) -> Source:
    """Only what is certainly wrong is refused; whether the weights are there, the server says."""
    try:
        parts = urlsplit(source)
        _ = parts.port
    except ValueError as error:
        # A port that is none, or half an IPv6 address.
        raise _refused(source, f"an address ({error})") from error
    path = unquote(parts.path)
    if parts.query or parts.fragment:
        raise _refused(source, "no ? and no #: what grants access comes from a Secret (model.credentials)")
    if any(part in (".", "..") for part in path.split("/")) or any(ord(c) < 32 for c in path):
        raise _refused(source, "a path without '.' and '..'")
    if "@" in parts.netloc:
        raise _refused(
            parts.scheme + "://...", "no user or password: credentials come from a Secret (model.credentials)"
        )
    match parts.scheme:
        case "file":
            if parts.netloc or not path.startswith("/"):
                raise _refused(source, "file:///absolute/path (three slashes): a folder in the image")
            return FileSource(path)
        case "pvc":
            if not _CLAIM.fullmatch(parts.netloc):
                raise _refused(source, "pvc://claim/path with the name of a claim in the fleet's namespace")
            return PvcSource(parts.netloc, path.strip("/"))
        case "oci":
            image = source.removeprefix("oci://")
            if not _IMAGE.fullmatch(image):
                raise _refused(
                    source, "oci://registry/repository:tag or oci://registry/repository@sha256:..."
                )
            return OciSource(image)
        case "hf":
            name, _, revision = path.removeprefix("/").partition("@")
            revision = revision or DEFAULT_REVISION
            if not (_HF_PART.fullmatch(parts.netloc) and _HF_PART.fullmatch(name)):
                raise _refused(source, "hf://organisation/name or hf://organisation/name@revision")
            if not _REVISION.fullmatch(revision):
                raise _refused(source, "a revision that is a commit, a branch or a tag without slashes")
            return HubSource(f"{parts.netloc}/{name}", revision)
        case "s3" | "gs":
            if not _BUCKET.fullmatch(parts.netloc):
                raise _refused(source, f"{parts.scheme}://bucket/path")
            return BucketSource(parts.scheme, parts.netloc, path.strip("/"))
        case "https":
            if not parts.hostname:
                raise _refused(source, "https://host/folder")
            return WebSource(f"https://{parts.netloc}/{quote(path.strip('/'))}".rstrip("/"))
        case scheme:
            raise _refused(source, f"one of {', '.join(SCHEMES)} instead of {scheme!r}")


def _refused(source: str, wanted: str) -> WeightsError:
    return WeightsError("ModelSourceInvalid", f"model.source: wanted {wanted}, found {source!r:.600}")
