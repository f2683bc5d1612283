"""From `model.source` to a folder on this machine.

`file:///path` is a folder in the image or a mount; `pvc://CLAIM/path` is the claim that the pod mounts at
PVC_ROOT/CLAIM. Other schemes need a download, which this release does not have: they end the start with a reason.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from moefleet_runtime.ending import FatalError

# Where a pod mounts the claims of pvc:// sources, one folder a claim.
PVC_ROOT = Path("/var/lib/moefleet/claims")


def resolve_source(source: str, *, pvc_root: Path = PVC_ROOT) -> Path:
    """The folder; raises FatalError(ModelSourceMissing or ModelSourceUnsupported)."""
    folder = locate_source(source, pvc_root=pvc_root)
    if not folder.is_dir():
        raise FatalError(
            "ModelSourceMissing", f"model.source {source!r}: {folder} is not a folder in this container"
        )
    return folder


def locate_source(source: str, *, pvc_root: Path = PVC_ROOT) -> Path:
    """Where the folder must be, whether it is there or not."""
    if not source:
        raise FatalError("ModelSourceMissing", "model.source is empty: this engine needs a checkpoint folder")
    parts = urlsplit(source)
    path = unquote(parts.path)
    match parts.scheme:
        case "file" if not parts.netloc and path.startswith("/"):
            return Path(path)
        case "file":
            raise FatalError(
                "ModelSourceMissing", f"model.source {source!r}: wanted file:///absolute/path (three slashes)"
            )
        case "pvc" if parts.netloc and ".." not in Path(path).parts:
            return pvc_root / parts.netloc / path.lstrip("/")
        case "":
            return Path(source)
        case scheme:
            raise FatalError(
                "ModelSourceUnsupported",
                f"model.source {source!r}: this runtime reads file:///path and pvc://claim/path, not {scheme}://",
            )
