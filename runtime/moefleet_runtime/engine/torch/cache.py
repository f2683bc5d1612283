"""The tensors of the paged cache, and how many blocks of them fit.

Per token and layer the cache keeps the latent and the rotated key, kv_lora_rank + rope_dim numbers, instead of the keys
and values of all heads: for DeepSeek-V2-Lite 31 kB a token instead of 332 kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from moefleet_runtime.engine.base import StartFailed
from moefleet_runtime.engine.torch.config import ModelConfig

Tensor = torch.Tensor

# Left alone when the pool is sized from free memory: activations of a step and what the server process grows by.
RESERVED_BYTES = 256 << 20
_MEMINFO = Path("/proc/meminfo")
# Limit and usage of the pod's own cgroup, version 2 first.
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


@dataclass(frozen=True, slots=True)
class LatentCache:
    block_tokens: int
    # One a layer, [slots, latent width]; slot = block * block_tokens + place in the block.
    layers: tuple[Tensor, ...]


def make_cache(
    config: ModelConfig, *, blocks: int, block_tokens: int, device: torch.device, dtype: torch.dtype
) -> LatentCache:
    """`blocks` and the padding block. Zeros, not garbage: padding is read (and masked), and NaN times 0 is NaN."""
    slots = (blocks + 1) * block_tokens
    return LatentCache(
        block_tokens,
        tuple(
            torch.zeros(slots, config.latent_width, device=device, dtype=dtype) for _ in range(config.layers)
        ),
    )


def block_bytes(config: ModelConfig, block_tokens: int, dtype: torch.dtype) -> int:
    return config.layers * block_tokens * config.latent_width * dtype.itemsize


def blocks_that_fit(*, free_bytes: int, fraction: float, bytes_per_block: int, most: int, least: int) -> int:
    """At most `most`: what full batches of the longest requests can hold. StartFailed below `least`, one such request."""
    usable = max(0, int((free_bytes - RESERVED_BYTES) * fraction))
    blocks = min(most, usable // bytes_per_block)
    if blocks < least:
        raise StartFailed(
            "OutOfMemory",
            f"KV cache: one request of the whole context needs {least} blocks of {bytes_per_block} bytes, found room for "
            f"{blocks} ({free_bytes} bytes free, {RESERVED_BYTES} kept back, of the rest {fraction:g}); "
            "give the pod more memory or lower model.contextLength",
        )
    return blocks


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = [_free_on_host(_MEMINFO), *(_free_in_cgroup(limit, usage) for limit, usage in _CGROUPS)]
    known = [n for n in found if n is not None]
    if not known:
        raise StartFailed(
            "EngineArgumentInvalid", "free memory cannot be read on this system: set engine.args.blocks"
        )
    return min(known)


def _free_on_host(meminfo: Path) -> int | None:
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _free_in_cgroup(limit: Path, usage: Path) -> int | None:
    """None without a limit ("max" in version 2, an absurd number in version 1, which min() drops by itself)."""
    try:
        most, now = limit.read_text(encoding="ascii").strip(), int(usage.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return max(0, int(most) - now) if most.isdigit() else None
