"""Does it fit? Bytes of one GPU, from the sizes of the model and the layout, before anything is loaded.

    KV cache = (device - weights - reserve) x memoryFraction

Weights: routed experts are shared out over the expert ranks. The rest is shared out over the tensor ranks, or whole on every
GPU under attention data parallelism; latent projections and gates are whole on every GPU always. MLA's cache has no heads to
share out: every tensor rank holds all of it, so that attention data parallelism, where each rank has its own requests,
multiplies what the pod holds. The reserve (contexts, NCCL, activations, CUDA graphs, workspaces) is an assumption until it
has been measured, and an argument (`memoryReserveGib`) for whoever has measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from moefleet_runtime.engine.tensorrt_llm.checkpoint import FP8_BLOCK, Checkpoint, Precision

GB: Final = 1_000_000_000
RESERVE_BYTES: Final = 7 * GB
# One float32 scale for each block of weights.
_SCALE_BYTES: Final = 4 / (FP8_BLOCK * FP8_BLOCK)
_BYTES: Final = {"BF16": 2.0, "FP8": 1.0 + _SCALE_BYTES}
_KV_BYTES: Final = {"BF16": 2, "FP8": 1}


@dataclass(frozen=True, slots=True)
class Layout:
    precision: Precision
    kv_precision: Precision
    tensor_parallel: int
    expert_parallel: int
    attention_data_parallel: bool

    def __str__(self) -> str:
        attention = "attention DP" if self.attention_data_parallel else f"TP{self.tensor_parallel}"
        return (
            f"{self.precision} weights, {attention} + EP{self.expert_parallel}, {self.kv_precision} KV cache"
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes are of one GPU."""

    layout: Layout
    context_length: int
    device_bytes: int
    weights_bytes: int
    reserve_bytes: int
    # 0 when nothing is left.
    kv_bytes: int
    kv_token_bytes: int

    @property
    def rank_tokens(self) -> int:
        """What one request may reach: a request lives on one rank."""
        return self.kv_bytes // self.kv_token_bytes

    @property
    def pod_tokens(self) -> int:
        ranks = self.layout.tensor_parallel if self.layout.attention_data_parallel else 1
        return self.rank_tokens * ranks

    @property
    def fits(self) -> bool:
        return self.rank_tokens >= self.context_length

    def __str__(self) -> str:
        return (
            f"{self.layout}: weights {self.weights_bytes / GB:.1f} GB + reserve {self.reserve_bytes / GB:.1f} GB"
            f" of {self.device_bytes / GB:.1f} GB per GPU leave {self.kv_bytes / GB:.1f} GB of KV cache ="
            f" {self.rank_tokens} tokens a rank, {self.pod_tokens} in the pod"
        )


def weights_bytes(checkpoint: Checkpoint, layout: Layout) -> int:
    """Of one GPU. Embeddings, head and gates stay in BF16 in an FP8 checkpoint."""
    each = _BYTES[layout.precision]
    ways = 1 if layout.attention_data_parallel else layout.tensor_parallel
    # What is not shared out by experts is shared out inside of them.
    routed = checkpoint.routed_parameters / layout.tensor_parallel
    shared_out = checkpoint.shared_parameters + checkpoint.dense_parameters + checkpoint.head_parameters
    quantised = each * (routed + shared_out / ways + checkpoint.latent_parameters)
    return round(quantised + 2 * (checkpoint.embedding_parameters / ways + checkpoint.gate_parameters))


def kv_token_bytes(checkpoint: Checkpoint, kv_precision: Precision) -> int:
    return checkpoint.layers * (checkpoint.kv_lora_rank + checkpoint.rope_dim) * _KV_BYTES[kv_precision]


def plan_memory(
    checkpoint: Checkpoint,
    layout: Layout,
    *,
    device_bytes: int,
    context_length: int,
    memory_fraction: float,
    reserve_bytes: int = RESERVE_BYTES,
) -> MemoryPlan:
    weights = weights_bytes(checkpoint, layout)
    left = max(device_bytes - weights - reserve_bytes, 0)
    return MemoryPlan(
        layout=layout,
        context_length=context_length,
        device_bytes=device_bytes,
        weights_bytes=weights,
        reserve_bytes=reserve_bytes,
        kv_bytes=int(left * memory_fraction),
        kv_token_bytes=kv_token_bytes(checkpoint, layout.kv_precision),
    )


def what_would_fit(checkpoint: Checkpoint, plan: MemoryPlan, *, memory_fraction: float) -> list[MemoryPlan]:
    """Other layouts on the same GPUs that hold a request of the whole context length; most tokens first."""
    precisions: tuple[Precision, ...] = ("FP8", "BF16")
    plans = [
        plan_memory(
            checkpoint,
            replace(plan.layout, precision=weights, kv_precision=kv, attention_data_parallel=data),
            device_bytes=plan.device_bytes,
            context_length=plan.context_length,
            memory_fraction=memory_fraction,
            reserve_bytes=plan.reserve_bytes,
        )
        for weights in precisions
        for kv in precisions
        for data in (True, False)
    ]
    return sorted((p for p in plans if p.fits), key=lambda p: -p.pod_tokens)


def refusal(checkpoint: Checkpoint, plan: MemoryPlan, *, memory_fraction: float) -> str:
    """Why a plan does not fit and what would, in numbers; empty when it fits."""
    if plan.fits:
        return ""
    missing = plan.weights_bytes + plan.reserve_bytes - plan.device_bytes
    if missing > 0:
        why = f"{missing / GB:.1f} GB are missing before the first token"
    else:
        why = (
            f"a request of {plan.context_length} tokens (the context length) needs"
            f" {plan.context_length * plan.kv_token_bytes / GB:.1f} GB of it on one rank"
        )
    others = what_would_fit(checkpoint, plan, memory_fraction=memory_fraction)
    would = [str(p) for p in others[:3]]
    if plan.rank_tokens >= 2:
        would.append(f"as it is, with a context length of at most {plan.rank_tokens}")
    hint = f" What would fit: {'; '.join(would)}." if would else " No layout on these GPUs would fit."
    return f"{plan}; {why}.{hint}"
