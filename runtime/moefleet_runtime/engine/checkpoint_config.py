"""config.json of a checkpoint as every engine reads it: an object of bounded size, or one clear reason to refuse it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from moefleet_runtime.engine.base import StartFailed

# A config.json is a few kilobytes; more is not a config.
MAX_CONFIG_BYTES: Final = 1 << 20


def unsupported(where: str, wanted: str, found: object) -> StartFailed:
    return StartFailed("CheckpointUnsupported", f"{where}: wanted {wanted}, found {found!r:.200}")


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise StartFailed("CheckpointUnreadable", f"{path}: wanted at most {MAX_CONFIG_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StartFailed("ModelSourceMissing", f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StartFailed("CheckpointUnreadable", f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise StartFailed("CheckpointUnreadable", f"{path}: wanted an object, found {type(data).__name__}")
    return data
