"""The documented names that the snapshot has facts about; what it has none of is missing here, so that nobody leans on it."""

from tensorrt_llm import _generated
from tensorrt_llm._llm import LLM, RequestOutput
from tensorrt_llm.executor.utils import RequestError

SamplingParams = _generated.SamplingParams
GuidedDecodingParams = _generated.GuidedDecodingParams
CompletionOutput = _generated.CompletionOutput
for _name in _generated.FACTS["import_paths"]["tensorrt_llm.llmapi"]:
    if _name in _generated.MODELS:
        globals()[_name] = _generated.MODELS[_name]
    elif _name in _generated.ENUMS:
        globals()[_name] = _generated.ENUMS[_name]

__all__ = [
    "LLM",
    "CompletionOutput",
    "GuidedDecodingParams",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
]
