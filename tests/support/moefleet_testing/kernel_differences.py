"""`python -m moefleet_testing.kernel_differences`: the GPU kernels under Triton's interpreter against plain torch, as JSON.

A process of its own: Triton decides when it is imported whether it interprets.
"""

from __future__ import annotations

import json
import os

import torch

Tensor = torch.Tensor
BLOCK_TOKENS = 4
SCALE = 0.3
# Lengths of the contexts, heads, kv_lora_rank, rope_dim.
CASES: dict[str, tuple[list[int], int, int, int]] = {
    "one token": ([1], 1, 16, 16),
    "the end of a piece, odd sizes": ([16, 17], 5, 24, 8),
    "several pieces and tiles of heads": ([40, 3, 33], 18, 32, 16),
}
# The interpreter has no bfloat16, in which a GPU computes.
TYPES = {"float32": torch.float32, "float16": torch.float16}


def main() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from moefleet_runtime.engine.torch.kernels import mla_decode

    # Several pieces and tiles in contexts that the interpreter reads in a second.
    mla_decode.SPLIT_TOKENS = mla_decode.TILE_TOKENS = 16  # type: ignore[misc]
    out = {}
    for name, (lengths, heads, rank, rope) in CASES.items():
        for kind, dtype in TYPES.items():
            chance = torch.Generator().manual_seed(11)
            blocks = 12 * len(lengths)
            cache = torch.randn(blocks * BLOCK_TOKENS, rank + rope, generator=chance).to(dtype)
            tables = torch.randperm(blocks, generator=chance)[: 11 * len(lengths)].view(len(lengths), 11)
            queries = torch.randn(len(lengths), heads, rank + rope, generator=chance).to(dtype)
            many = torch.tensor(lengths)
            found = mla_decode.mla_decode(
                queries, cache, tables, many, block_tokens=BLOCK_TOKENS, kv_lora_rank=rank, scale=SCALE
            )
            wanted = plainly(queries, cache, tables, many, rank=rank)
            out[f"{name}, {kind}"] = float((found.float() - wanted).abs().max())
            assert found.dtype == dtype
    print(json.dumps(out))


def plainly(queries: Tensor, cache: Tensor, tables: Tensor, lengths: Tensor, *, rank: int) -> Tensor:
    out = []
    for query, table, length in zip(queries, tables, lengths.tolist(), strict=True):
        slots = [int(table[t // BLOCK_TOKENS]) * BLOCK_TOKENS + t % BLOCK_TOKENS for t in range(length)]
        latents = cache[slots].float()
        share = (query.float() @ latents.T * SCALE).softmax(-1)
        out.append(share @ latents[:, :rank])
    return torch.stack(out)


if __name__ == "__main__":
    main()
