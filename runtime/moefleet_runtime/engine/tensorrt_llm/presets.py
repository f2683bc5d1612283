"""Layouts that are known to make sense on one node of 8 H800 (80 GB), as data: what users write, and what it costs.

`Auto` takes Throughput with attention data parallelism and Latency without. None of the numbers has been measured by this
project on the real engine: they follow the engine's own guides for DeepSeek-R1 and our memory arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

PresetName = Literal["Auto", "Throughput", "Latency", "FastStart"]

# The largest graph of the engine's own default.
_LARGEST_GRAPH: Final = 128


@dataclass(frozen=True, slots=True)
class Preset:
    name: str
    # What `spec.engine` holds; None of attentionData: either.
    spec: Mapping[str, Any]
    # Sequences and tokens of one step and rank, where the fleet does not say.
    max_batch_size: int
    max_num_tokens: int
    # Tokens of a stream that come together, after the first.
    stream_interval: int
    # Keywords of CudaGraphConfig.
    cuda_graphs: Mapping[str, Any]
    costs: str

    @property
    def attention_data(self) -> bool | None:
        value: bool | None = self.spec["parallelism"].get("attentionData")
        return value

    @property
    def graphs(self) -> tuple[int, ...]:
        """Batch sizes that are captured; each costs start-up time and up to 0.2 GB a GPU."""
        return graph_sizes(self.cuda_graphs)


def graph_sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The list that CudaGraphConfig generates, by the rule in the API snapshot (`generated_batch_sizes`)."""
    if config.get("batch_sizes"):
        return tuple(sorted(config["batch_sizes"]))
    largest = config.get("max_batch_size") or _LARGEST_GRAPH
    small = [1, 2, 4, *range(8, 129, 8)] if config.get("enable_padding") else [*range(1, 32), 32, 64, 128]
    doubled = [256 << i for i in range(largest.bit_length())]
    return tuple(size for size in (*small, *doubled) if size <= largest)


def _spec(*, attention_data: bool | None, preset: str) -> Mapping[str, Any]:
    parallelism: dict[str, Any] = {"tensor": 8, "expert": 8}
    if attention_data is not None:
        parallelism["attentionData"] = attention_data
    return MappingProxyType(
        {
            "type": "TensorRTLLM",
            "precision": "FP8",
            "kvCache": {"precision": "FP8", "memoryFraction": 0.8, "reuse": True},
            "parallelism": parallelism,
            "args": {"preset": preset},
        }
    )


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "Throughput": Preset(
            name="Throughput",
            spec=_spec(attention_data=True, preset="Throughput"),
            max_batch_size=1024,
            max_num_tokens=4096,
            stream_interval=10,
            cuda_graphs=MappingProxyType({"enable_padding": True, "max_batch_size": _LARGEST_GRAPH}),
            costs="attention and shared experts are whole on every GPU (12 GB more than Latency), which buys 8 separate KV"
            " caches: 7 million tokens instead of 1. A request is computed by one GPU's attention: its time between tokens is"
            " longer than with Latency. After the first, tokens of a stream come 10 at a time. 19 graphs are captured.",
        ),
        "Latency": Preset(
            name="Latency",
            spec=_spec(attention_data=False, preset="Latency"),
            max_batch_size=256,
            max_num_tokens=8192,
            stream_interval=1,
            cuda_graphs=MappingProxyType({"enable_padding": True, "max_batch_size": _LARGEST_GRAPH}),
            costs="every GPU holds the same KV cache: about 1.2 million tokens in the pod, a sixth of Throughput, and every"
            " layer waits for an all-reduce. Tokens come one at a time: more messages for the server. 19 graphs are captured.",
        ),
        "FastStart": Preset(
            name="FastStart",
            spec=_spec(attention_data=None, preset="FastStart"),
            max_batch_size=256,
            max_num_tokens=4096,
            stream_interval=10,
            cuda_graphs=MappingProxyType({"enable_padding": True, "batch_sizes": [1, 8, 32, 128]}),
            costs="4 graphs instead of 19 are captured, which saves their time at start and up to 3 GB a GPU; a batch between"
            " two sizes is padded to the larger one, so that 9 sequences cost as much as 32. The autotuner still runs: its"
            " cache (autotunerCache) makes the second start on the same kind of GPU shorter.",
        ),
    }
)


def choose(name: str, *, attention_data: bool) -> Preset:
    """Raises ValueError when the preset is for the other way of parallel attention."""
    if name == "Auto":
        return PRESETS["Throughput" if attention_data else "Latency"]
    preset = PRESETS[name]
    if preset.attention_data not in (None, attention_data):
        raise ValueError(
            f"preset {name} is for engine.parallelism.attentionData {str(preset.attention_data).lower()},"
            f" found {str(attention_data).lower()}; Auto and FastStart go with either"
        )
    return preset
