"""The Torch engine: real DeepSeek-V2-format checkpoints on CPU or on one GPU, in our own code.

Belongs here: reading a checkpoint, the forward pass over a paged latent cache, blocks, scheduling, sampling
and the thread that steps. `blocks`, `scheduler`, `requests` and `tokenizer` do not import torch. Does not
belong here: gRPC, processes, text in requests. transformers is the oracle of the tests, never a dependency.
"""

from __future__ import annotations

import os

from moefleet_runtime.engine.base import Engine, EngineSettings, StartFailed


def make_engine(settings: EngineSettings) -> Engine:
    """Imports torch; raises StartFailed(EngineUnavailable) where the image has none."""
    # OpenMP reads these once, when torch loads it. Threads that spin at barriers cost a pod its whole CPU limit:
    # the same work ran at 287 tokens/s instead of 4,009 when a neighbour wanted the core they spun on.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    try:
        from moefleet_runtime.engine.torch.engine import TorchEngine
    except ImportError as error:
        raise StartFailed("EngineUnavailable", f"this image cannot run engine Torch: {error}") from error
    return TorchEngine(settings)
