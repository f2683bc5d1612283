"""From an engine's name to the engine; imports only the one that was chosen."""

from __future__ import annotations

import importlib
from typing import Final, cast

from moefleet_runtime.engine.base import Engine, EngineSettings, StartFailed

# Each module has `make_engine(settings: EngineSettings) -> Engine`.
_MODULES: Final = {
    "Simulated": "moefleet_runtime.engine.simulated",
    "Torch": "moefleet_runtime.engine.torch",
    "TensorRTLLM": "moefleet_runtime.engine.tensorrt_llm",
}

ENGINE_TYPES: Final = tuple(_MODULES)


def make_engine(kind: str, settings: EngineSettings) -> Engine:
    """Raises StartFailed(EngineUnavailable) when this image does not hold what the engine needs."""
    if kind not in _MODULES:
        raise StartFailed(
            "EngineUnavailable", f"engine type {kind!r} is not one of {', '.join(ENGINE_TYPES)}"
        )
    try:
        module = importlib.import_module(_MODULES[kind])
    except ImportError as error:
        raise StartFailed("EngineUnavailable", f"this image cannot run engine {kind}: {error}") from error
    return cast(Engine, module.make_engine(settings))
