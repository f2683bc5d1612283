"""`python -m moefleet_runtime.engine.tensorrt_llm.contract`: the contract, against the installed tensorrt_llm."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from moefleet_trtllm.api import VERSION

from moefleet_runtime.engine.arguments import TensorRTLLMArguments
from moefleet_runtime.engine.base import EngineSettings
from moefleet_runtime.engine.tensorrt_llm.contract.suite import check_engine, check_names


def settings_for(
    model: Path, *, tensor: int, attention_data: bool, args: dict[str, object]
) -> EngineSettings:
    """Small limits, so that a full engine and a chunked prompt cost seconds."""
    return EngineSettings(
        model_name="contract",
        model_path=model,
        context_length=4096,
        arguments=TensorRTLLMArguments.model_validate({"preset": "FastStart", "stream_interval": 4, **args}),
        max_batch_size=8,
        max_batch_tokens=256,
        max_queued=4,
        tensor_parallel=tensor,
        expert_parallel=tensor,
        attention_data_parallel=attention_data,
    )


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    outcomes = list(check_names())
    if options.model is not None:
        args = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in options.arg)}
        settings = settings_for(
            options.model, tensor=options.tensor, attention_data=options.attention_data, args=args
        )
        outcomes += check_engine(settings, patience_s=options.patience_s)
    for outcome in outcomes:
        print(f"{'broken' if outcome.broken else 'holds ':<7} {outcome.name}", flush=True)
        if outcome.broken:
            print(f"        {outcome.broken}", flush=True)
    broken = sum(bool(outcome.broken) for outcome in outcomes)
    print(f"{len(outcomes) - broken} of {len(outcomes)} checks hold")
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moefleet_runtime.engine.tensorrt_llm.contract",
        description=f"Holds the installed tensorrt_llm against what the adapter expects of {VERSION}.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model",
        metavar="DIR",
        type=Path,
        help="checkpoint to start the engine with; without it only names are checked",
    )
    parser.add_argument("--tensor", type=int, default=1, help="GPUs (tensor and expert parallel)")
    parser.add_argument("--attention-data", action="store_true", help="attention data parallelism")
    parser.add_argument("--arg", metavar="NAME=JSON", action="append", default=[], help="engine argument")
    parser.add_argument("--patience-s", type=float, default=120.0, help="for each answer")
    return parser


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # The engine leaves threads and hooks that may wait for ever.
    os._exit(status)
