"""The TensorRT-LLM engine: `tensorrt_llm` 1.2.1 driven over its LLM API, in the engine host process.

Belongs here: the adapter, what is known of that API (a snapshot, and a contract that an installed one can be held against),
the DeepSeek-V2 model class for its PyTorch backend. Does not belong here: `tensorrt_llm` itself, which only the host process
imports and only when it makes the engine. README.md says what is proven and how.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moefleet_runtime.engine.base import Engine, EngineSettings


def make_engine(settings: EngineSettings) -> Engine:
    # Here, because `engine.arguments` reads the API snapshot of this package, and `engine.base` reads `engine.arguments`.
    from moefleet_runtime.engine.tensorrt_llm.starting import make

    return make(settings)
