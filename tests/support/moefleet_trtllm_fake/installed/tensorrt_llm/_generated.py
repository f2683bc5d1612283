"""Configuration classes, parameters and outputs, made from the snapshot: as strict as the real ones, and no more.

A pydantic model refuses unknown fields (ValidationError), a dataclass unknown keywords (TypeError).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Union  # noqa: UP035 - the snapshot writes them

from moefleet_trtllm.api import snapshot
from pydantic import BaseModel, ConfigDict, Field, create_model

FACTS = snapshot()
ENUMS: dict[str, Any] = {
    name: Enum(
        name, fact["members"], type=str if all(isinstance(v, str) for v in fact["members"].values()) else None
    )
    for name, fact in FACTS["enums"].items()
}
_TYPING = {
    **{"Any": Any, "Dict": Dict, "List": List, "Literal": Literal, "Optional": Optional},  # noqa: UP006
    **{"Sequence": Sequence, "Union": Union, "Path": Path},
}


class _Names(dict[str, Any]):
    """What the snapshot has no class for can be anything."""

    def __missing__(self, name: str) -> Any:
        builtin = (
            __builtins__.get(name) if isinstance(__builtins__, dict) else getattr(__builtins__, name, None)
        )
        return builtin if builtin is not None and builtin is not object else Any


MODELS: dict[str, type[BaseModel]] = {}


class StrictBaseModel(BaseModel):
    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())


def _type(text: str) -> Any:
    return eval(text.replace("torch.Tensor", "Any"), _Names({**_TYPING, **ENUMS, **MODELS}))


def _pydantic(name: str) -> type[BaseModel]:
    if name in MODELS:
        return MODELS[name]
    fact = FACTS["models"][name]
    base = next((b for b in fact.get("bases", ()) if b in FACTS["models"]), None)
    fields: dict[str, Any] = {}
    for field in fact["fields"]:
        for inner in FACTS["models"]:
            if inner != name and inner in field["type"] and FACTS["models"][inner]["kind"] == "pydantic":
                _pydantic(inner)
        if field.get("required"):
            default: Any = Field(...)
        elif "default_factory" in field:
            default = Field(default_factory=_pydantic(field["default_factory"]))
        elif "default_enum" in field:
            enum, member = field["default_enum"].split(".")
            default = ENUMS[enum][member]
        else:
            default = field.get("default")
        # The real constructor takes enum members by their names.
        fields[field["name"]] = (_type(field["type"]), default)
    MODELS[name] = create_model(name, __base__=_pydantic(base) if base else StrictBaseModel, **fields)
    return MODELS[name]


def _dataclass(name: str, extra: dict[str, Any]) -> type:
    fact = FACTS["models"][name]
    fields: list[Any] = []
    for field in fact["fields"]:
        if field.get("required"):
            fields.append((field["name"], Any))
        elif field.get("default_factory") == "list":
            fields.append((field["name"], Any, dataclasses.field(default_factory=list)))
        else:
            fields.append((field["name"], Any, dataclasses.field(default=field.get("default"))))
    fields += [
        (n, Any, dataclasses.field(default=None, init=False, repr=False))
        for n in fact.get("non_init_fields", ())
    ]
    made = dataclasses.make_dataclass(
        name, fields, namespace=extra, slots=fact.get("slots", False), kw_only=fact.get("kw_only", False)
    )
    made.__module__ = __name__
    return made


def _check_sampling(self: Any) -> None:
    """The `rules` of SamplingParams in the snapshot."""
    if self.pad_id is None:
        self.pad_id = self.end_id
    self.best_of = self.best_of or self.n
    if self.top_p is not None and not 0 <= self.top_p <= 1:
        raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
    if self.top_k is not None and self.top_k < 0:
        raise ValueError(f"require top_k >= 0, got top_k={self.top_k}")
    if self.temperature is not None and self.temperature < 0:
        raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
    if self.best_of < self.n:
        raise ValueError(f"best_of ({self.best_of}) cannot be less than n ({self.n})")
    if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens < 1:
        raise ValueError("require truncate_prompt_tokens >= 1")
    if self.best_of > 1 and greedy(self) and "TLLM_ALLOW_N_GREEDY_DECODING" not in os.environ:
        raise ValueError("greedy decoding allows no more than one answer")


def greedy(params: Any) -> bool:
    unset = params.temperature is None and params.top_p is None and params.top_k is None
    return not params.use_beam_search and (
        unset or params.top_k == 1 or params.top_p == 0 or params.temperature == 0
    )


def _check_guide(self: Any) -> None:
    if sum(bool(getattr(self, n)) for n in ("json", "regex", "grammar", "json_object", "structural_tag")) > 1:
        raise ValueError("only one guide can be used for a request")


for _name, _fact in FACTS["models"].items():
    if _fact["kind"] == "pydantic":
        _pydantic(_name)
SamplingParams = _dataclass("SamplingParams", {"__post_init__": _check_sampling})
GuidedDecodingParams = _dataclass("GuidedDecodingParams", {"__post_init__": _check_guide})
CompletionOutput = _dataclass("CompletionOutput", {"length": property(lambda self: len(self.token_ids))})
SchedulingParams = _dataclass("SchedulingParams", {})
TorchLlmArgs = MODELS["TorchLlmArgs"]
# A module-level name for each class, as the real module has.
sys.modules[__name__].__dict__.update(MODELS)
