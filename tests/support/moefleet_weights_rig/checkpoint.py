"""The tiny checkpoint as large ones come: in shards, with an index."""

from __future__ import annotations

import json
from pathlib import Path

from moefleet_weights.tensors import INDEX_NAME, header_bytes, read_header

CHECKPOINT = Path(__file__).parents[1] / "models" / "tiny-deepseek-v2"


def sharded(shards: int = 3) -> dict[str, bytes]:
    """Name -> content. Without torch: the bytes of the tensors are cut out as they are."""
    path = CHECKPOINT / "model.safetensors"
    header, whole = read_header(path), path.read_bytes()
    files = {
        n: (CHECKPOINT / n).read_bytes() for n in ("config.json", "tokenizer.json", "tokenizer_config.json")
    }
    weight_map: dict[str, str] = {}
    count = len(header.tensors)
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = header.tensors[i * count // shards : (i + 1) * count // shards]
        head = header_bytes((t.name, t.dtype, t.shape) for t in part)
        begin = header.data_begin
        files[name] = head + b"".join(whole[begin + t.begin : begin + t.end] for t in part)
        weight_map |= dict.fromkeys((t.name for t in part), name)
    files[INDEX_NAME] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    return files
