"""From `model.source` to a folder on this machine, or to what has to be fetched into one.

`file:///path` is a folder in the image or a mount; `pvc://CLAIM/path` and `oci://IMAGE` are mounted by the pod; hf, s3, gs
and https are fetched (`fetching`). The forms themselves are moefleet_weights'.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from moefleet_weights.failing import WeightsError
from moefleet_weights.source import (
    CLAIMS_FOLDER,
    IMAGE_FOLDER,
    BucketSource,
    FileSource,
    HubSource,
    OciSource,
    PvcSource,
    Remote,
    WebSource,
    parse_source,
)

from moefleet_runtime.ending import FatalError

# Where a pod mounts the claims of pvc:// sources, one folder a claim.
PVC_ROOT = Path(CLAIMS_FOLDER)
OCI_ROOT = Path(IMAGE_FOLDER)


def resolve_source(source: str, *, pvc_root: Path = PVC_ROOT, oci_root: Path = OCI_ROOT) -> Path | Remote:
    """A folder that is there, or what is to be fetched. Raises FatalError(ModelSourceMissing or ModelSourceInvalid)."""
    found = locate_source(source, pvc_root=pvc_root, oci_root=oci_root)
    if isinstance(found, Path) and not found.is_dir():
        raise FatalError(
            "ModelSourceMissing", f"model.source {source!r}: {found} is not a folder in this container"
        )
    return found


def locate_source(source: str, *, pvc_root: Path = PVC_ROOT, oci_root: Path = OCI_ROOT) -> Path | Remote:
    """Where the folder must be, whether it is there or not."""
    if not source:
        raise FatalError("ModelSourceMissing", "model.source is empty: this engine needs a checkpoint folder")
    if source.startswith("/"):
        # By hand.
        return Path(source)
    try:
        parsed = parse_source(source)
    except WeightsError as error:
        raise FatalError(error.reason, error.message) from error
    match parsed:
        case FileSource(path):
            return Path(path)
        case PvcSource(claim, path):
            return pvc_root / claim / path
        case OciSource():
            return oci_root
        case HubSource() | BucketSource() | WebSource():
            return parsed
        case _:
            assert_never(parsed)
