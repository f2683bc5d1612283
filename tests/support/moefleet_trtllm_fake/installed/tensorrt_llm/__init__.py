"""A strict fake of `tensorrt_llm` 1.2.1: see `moefleet_trtllm_fake`. It computes no model; its tokens are arithmetic."""

from ._behaviour import behaviour
from .llmapi import LLM, SamplingParams

__version__ = behaviour().version
__all__ = ["LLM", "SamplingParams"]
