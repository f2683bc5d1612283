"""A strict stand-in for `tensorrt_llm` 1.2.1, and what tests of its adapter share.

`installed/tensorrt_llm` is the package itself, generated at import from the API snapshot of the runtime: tests put `installed`
on the path of the process that shall find it. Every behaviour that is more than a name cites the section of the notes on
1.2.1 that it comes from ("notes 3": cancellation), which are summed up in the README beside the snapshot.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What goes onto sys.path (or PYTHONPATH of a host process).
VARIABLE = "MOEFLEET_TRTLLM_FAKE"
INSTALLED = Path(__file__).resolve().parent / "installed"


def write_checkpoint(folder: Path, **changed: Any) -> Path:
    """A config.json that the fake serves; V3 unless told otherwise, so that nothing imports torch."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SMALL, **changed}))
    return folder


SMALL: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "max_position_embeddings": 32768,
    "eos_token_id": 1,
}


@contextlib.contextmanager
def installed(**behaviour: Any) -> Iterator[None]:
    """`import tensorrt_llm` finds the fake in this process, which behaves like this; forgotten afterwards."""
    variables = {VARIABLE: json.dumps(behaviour), "MOEFLEET_TRTLLM_ANY_THREAD": "1"}
    before = {name: os.environ.get(name) for name in (*variables, "TLLM_AUTOTUNER_CACHE_PATH")}
    os.environ.update(variables)
    sys.path.insert(0, str(INSTALLED))
    try:
        yield
    finally:
        sys.path.remove(str(INSTALLED))
        theirs = [n for n in sys.modules if n == "tensorrt_llm" or n.startswith("tensorrt_llm.")]
        # And the one module of ours whose classes are made from theirs.
        for name in (*theirs, "moefleet_runtime.engine.tensorrt_llm.deepseek_v2_model"):
            sys.modules.pop(name, None)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
