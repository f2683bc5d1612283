"""The Torch engine against transformers' `generate` on one thread: the same prompts, the same answers' lengths, in turns.

In a process of its own that holds one core, so that a neighbour takes from both alike; the number is tokens per second of that
process' own time, which on a free core is tokens per second. `python -m moefleet_bench.torch_streams` prints the rounds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.console import Console

from .report import Bench, Row, ratio_of_pairs

# Streams, and how many times the tokens/s of transformers the issue wants.
STREAMS = {1: 1.5, 8: 1.7, 32: 2.0}
PROMPT_TOKENS, ANSWER_TOKENS = 64, 64
ROUNDS = 5
NAMES = tuple(f"torch_{n}" for n in STREAMS)


async def measure(console: Console) -> list[Row]:
    process = await asyncio.create_subprocess_exec(
        *("taskset", "-c", str(max(os.sched_getaffinity(0)))),
        *(sys.executable, "-m", "moefleet_bench.torch_streams"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"the rounds ended with {process.returncode}; they said why above")
    return rows(json.loads(out.splitlines()[-1]), console)


def rows(rounds: dict[str, dict[str, list[float]]], console: Console) -> list[Row]:
    """`rounds`: of each number of streams, ours and theirs in tokens/s, round by round."""
    out = []
    for streams, wanted in STREAMS.items():
        ours, theirs = rounds[str(streams)]["ours"], rounds[str(streams)]["transformers"]
        console.print(
            f"{streams:3} streams: ours {' '.join(f'{x:.0f}' for x in ours)}, transformers {' '.join(f'{x:.0f}' for x in theirs)}",
            highlight=False,
        )
        out.append(
            Row(
                f"torch_{streams}",
                median(ours),
                "tokens/s of one thread",
                against=f"{median(theirs):.0f} of transformers' static generate",
                ratio=ratio_of_pairs(ours, theirs),
                wanted=f"at least {wanted:g}",
            )
        )
    return out


def _rounds() -> dict[str, dict[str, list[float]]]:
    import torch
    from moefleet_runtime.engine.base import EngineRequest
    from moefleet_testing.torch_engine import CHECKPOINT, RunningEngine, settings
    from transformers import DeepseekV2ForCausalLM

    torch.set_num_threads(1)
    oracle: Any = DeepseekV2ForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
    # Not what one prompt says: the answers of both go on to the length, whatever comes.
    oracle.generation_config.eos_token_id = None
    numbers = iter(range(1 << 30))

    def prompts(streams: int) -> list[list[int]]:
        # New ones each time: neither side shall find its prefix in a cache.
        return [
            [3 + (next(numbers) * 31 + i * 17) % 2000 for i in range(PROMPT_TOKENS)] for _ in range(streams)
        ]

    out: dict[str, dict[str, list[float]]] = {}
    with RunningEngine(settings(blocks=512)) as running:

        def ours(streams: int) -> None:
            wanted = [
                EngineRequest(f"r{next(numbers)}", tuple(p), ANSWER_TOKENS, ignore_eos=True)
                for p in prompts(streams)
            ]
            answers = running.answers(*wanted)
            assert all(len(a) == ANSWER_TOKENS for a in answers)

        def theirs(streams: int) -> None:
            given = torch.tensor(prompts(streams))
            with torch.inference_mode():
                answers = oracle.generate(
                    given, attention_mask=torch.ones_like(given), max_new_tokens=ANSWER_TOKENS, do_sample=False, pad_token_id=0
                )  # fmt: skip
            assert answers.shape == (streams, PROMPT_TOKENS + ANSWER_TOKENS)

        for streams in STREAMS:
            ways: dict[str, Callable[[int], None]] = {"ours": ours, "transformers": theirs}
            for way in ways.values():
                way(streams)  # warm
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    begin_s = time.process_time()
                    way(streams)
                    found[name].append(streams * ANSWER_TOKENS / (time.process_time() - begin_s))
            out[str(streams)] = found
    return out


TORCH_STREAMS = Bench(NAMES, measure)

if __name__ == "__main__":
    print(json.dumps(_rounds()))
