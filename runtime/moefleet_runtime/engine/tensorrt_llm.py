"""The place of the TensorRT-LLM engine. This release's image has no tensorrt_llm, and says so when it is chosen."""

from __future__ import annotations

import importlib.util

from moefleet_runtime.engine.base import Engine, EngineSettings, StartFailed

# The only version whose API the project knows (LLM arguments are strict, and change between versions).
WANTED_VERSION = "1.2.1"


def make_engine(settings: EngineSettings) -> Engine:
    found = importlib.util.find_spec("tensorrt_llm") is not None
    raise StartFailed(
        "EngineUnavailable",
        f"engine TensorRTLLM for model {settings.model_name!r} needs tensorrt_llm {WANTED_VERSION} and this release's"
        f" adapter for it; the image {'has tensorrt_llm, but not the adapter' if found else 'has no tensorrt_llm'}."
        " Choose engine.type Torch or Simulated.",
    )
