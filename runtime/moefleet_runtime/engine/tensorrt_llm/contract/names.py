"""The installed package against the snapshot, without starting anything: names, defaults and refusals."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from moefleet_trtllm.api import VERSION, fields_of, llm_fields, snapshot

from moefleet_runtime.engine.tensorrt_llm.contract.rig import require

# Configuration classes that the adapter makes, and whose fields users may set.
CLASSES: Final = (
    "TorchLlmArgs",
    "KvCacheConfig",
    "MoeConfig",
    "CudaGraphConfig",
    "AttentionDpConfig",
    "SchedulerConfig",
)


def the_version_is_the_one_that_is_driven() -> None:
    found = importlib.import_module("tensorrt_llm").__version__
    require(found == VERSION, f"wanted {VERSION}, found {found}")


def configuration_classes_have_the_fields_of_the_snapshot() -> None:
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    for name in CLASSES:
        found = set(getattr(llmapi, name).model_fields)
        wanted = set(llm_fields() if name == "TorchLlmArgs" else fields_of(name))
        require(wanted == found, f"{name}: missing {sorted(wanted - found)}, new {sorted(found - wanted)}")


def configuration_classes_have_the_defaults_of_the_snapshot() -> None:
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    for name in CLASSES:
        facts: list[Mapping[str, Any]] = snapshot()["models"][name]["fields"]
        for fact in facts:
            if "default" not in fact:
                continue
            found = getattr(llmapi, name).model_fields[fact["name"]].default
            require(
                found == fact["default"],
                f"{name}.{fact['name']}: wanted {fact['default']!r}, found {found!r}",
            )


def unknown_names_are_refused() -> None:
    llmapi = importlib.import_module("tensorrt_llm.llmapi")
    for name in CLASSES:
        known = {"model": "x"} if name == "TorchLlmArgs" else {}
        refused = False
        try:
            getattr(llmapi, name)(**known, no_such_field=1)
        except (ValueError, TypeError):
            refused = True
        require(refused, f"{name}(no_such_field=1) was accepted")


def sampling_parameters_are_those_of_the_snapshot() -> None:
    found = {f.name: f for f in dataclasses.fields(importlib.import_module("tensorrt_llm").SamplingParams)}
    facts: list[Mapping[str, Any]] = snapshot()["models"]["SamplingParams"]["fields"]
    for fact in facts:
        require(fact["name"] in found, f"SamplingParams.{fact['name']} is missing")
        default = found[fact["name"]].default
        require(default == fact["default"], f"SamplingParams.{fact['name']}: found {default!r}")


def one_request_failing_is_an_error_of_its_own() -> None:
    error = importlib.import_module("tensorrt_llm.llmapi").RequestError
    require(issubclass(error, RuntimeError), "RequestError is no RuntimeError")
    require(error is not RuntimeError, "RequestError is RuntimeError itself")


def the_llm_has_the_methods_that_are_called() -> None:
    llm = importlib.import_module("tensorrt_llm").LLM
    for name in ("generate_async", "get_stats", "get_kv_cache_events", "shutdown", "_check_health"):
        require(callable(getattr(llm, name, None)), f"LLM.{name} is missing")
    require(not inspect.iscoroutinefunction(llm.generate_async), "generate_async is a coroutine")


def a_model_class_of_ours_can_be_registered() -> None:
    utils = importlib.import_module("tensorrt_llm._torch.models.modeling_utils")
    require(callable(utils.register_auto_model), "register_auto_model is missing")
    require(isinstance(utils.MODEL_CLASS_MAPPING, dict), "MODEL_CLASS_MAPPING is no dict")
    deepseek = importlib.import_module("tensorrt_llm._torch.models.modeling_deepseekv3")
    require(inspect.isclass(deepseek.DeepseekV3ForCausalLM), "DeepseekV3ForCausalLM is missing")
    # The plug-in hangs on this one attribute: without it the V3 gate would route, and nothing would say so.
    require(
        "gate_cls" in inspect.getsource(deepseek),
        "the DeepSeek-V3 class does not ask config.gate_cls for a gate",
    )
    routing = importlib.import_module("tensorrt_llm._torch.modules.fused_moe.routing")
    require(hasattr(routing.BaseMoeRoutingMethod, "apply"), "BaseMoeRoutingMethod.apply is missing")


NAME_CHECKS: Final[tuple[Callable[[], None], ...]] = (
    the_version_is_the_one_that_is_driven,
    configuration_classes_have_the_fields_of_the_snapshot,
    configuration_classes_have_the_defaults_of_the_snapshot,
    unknown_names_are_refused,
    sampling_parameters_are_those_of_the_snapshot,
    one_request_failing_is_an_error_of_its_own,
    the_llm_has_the_methods_that_are_called,
    a_model_class_of_ours_can_be_registered,
)
