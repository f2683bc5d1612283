"""`model.source`: what the pod needs so that the runtime finds the weights there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from moefleet_operator.api import conditions

from .problem import Problem

# Where the runtime looks for the claims of pvc:// sources, one folder a claim.
CLAIMS_FOLDER = "/var/lib/moefleet/claims"

_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Source:
    # PersistentVolumeClaim to mount; None: the runtime fetches or finds the weights itself.
    claim: str | None = None


def parse_source(source: str) -> Source | Problem:
    """Only what is certainly wrong is refused here; whether the weights are there, the replica finds out."""
    parts = urlsplit(source)
    path = unquote(parts.path)
    if ".." in path.split("/"):
        return _missing(source, "a path without '..'")
    match parts.scheme:
        case "file":
            if parts.netloc or not path.startswith("/"):
                return _missing(source, "file:///absolute/path (three slashes): a folder in the image")
            return Source()
        case "pvc":
            if not _CLAIM.fullmatch(parts.netloc):
                return _missing(source, "pvc://claim/path with the name of a claim in the fleet's namespace")
            return Source(claim=parts.netloc)
        case "hf":
            if not re.fullmatch(r"/[^/]+", path.partition("@")[0]) or not parts.netloc:
                return _missing(source, "hf://organisation/name or hf://organisation/name@revision")
            return Source()
        case "s3" | "oci":
            if not parts.netloc:
                return _missing(source, f"{parts.scheme}://host-or-bucket/path")
            return Source()
        case scheme:
            return _missing(source, f"one of hf, s3, pvc, oci and file instead of {scheme!r}")


def _missing(source: str, wanted: str) -> Problem:
    return Problem(conditions.MODEL_SOURCE_MISSING, f"spec.model.source: wanted {wanted}, found {source!r}")
