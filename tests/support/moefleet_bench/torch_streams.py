"""The Torch engine against transformers' `generate` and llama.cpp on one thread: the same prompts, the same answers' lengths, in turns.

In a process of its own that holds one core, so that a neighbour takes from both alike; the number is tokens per second of that
process' own time, which on a free core is tokens per second; llama.cpp has its own (`llama.py`) on the same core. `python -m moefleet_bench.torch_streams` prints the rounds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from .report import Bench, Row, ratio_of_pairs

# Streams, and how many times the tokens/s of transformers the issue wants.
STREAMS = {1: 1.5, 8: 1.7, 32: 2.0}
PROMPT_TOKENS, ANSWER_TOKENS = 64, 64
ROUNDS = 5
NAMES = tuple(f"torch_{n}" for n in STREAMS)
LLAMA = Path(__file__).with_name("llama.py")
# Of `make bench`; without it there are no rows of llama.cpp.
LLAMA_PYTHON = Path(__file__).parents[3] / ".venv-llama/bin/python"


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
        each = (
            f"{name} {' '.join(f'{x:.0f}' for x in found)}" for name, found in rounds[str(streams)].items()
        )
        console.print(f"{streams:3} streams: {', '.join(each)}", highlight=False)
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
        if llama := rounds[str(streams)].get("llama.cpp"):
            out.append(
                Row(
                    f"torch_{streams}_llama",
                    median(ours),
                    "tokens/s of one thread",
                    against=f"{median(llama):.0f} of llama.cpp, float32, with V3's choice of groups",
                    ratio=ratio_of_pairs(ours, llama),
                )
            )
    return out


@contextmanager
def _llama(checkpoint: Path, streams: int) -> Iterator[Callable[[list[list[int]]], float]]:
    """Answers prompts; processor seconds that it took."""
    # -P: beside it lies an `operator.py`, which it would import for Python's own.
    command = [str(LLAMA_PYTHON), "-P", str(LLAMA), str(checkpoint), str(streams)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        written, read = process.stdin, process.stdout
        assert written is not None
        assert read is not None

        def ask(prompts: list[list[int]]) -> float:
            print(json.dumps({"prompts": prompts, "answer": ANSWER_TOKENS}), file=written, flush=True)
            line = read.readline()
            if not line:
                raise RuntimeError("llama.cpp has ended; it said why above")
            said = json.loads(line)
            if said["tokens"] != [ANSWER_TOKENS] * len(prompts):
                raise RuntimeError(
                    f"llama.cpp: wanted {ANSWER_TOKENS} tokens for each prompt, found {said['tokens']}"
                )
            return float(said["cpu_s"])

        try:
            yield ask
        finally:
            with suppress(BrokenPipeError):
                written.close()


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

        def timed(way: Callable[[int], None]) -> Callable[[int], float]:
            def took_s(streams: int) -> float:
                begin_s = time.process_time()
                way(streams)
                return time.process_time() - begin_s

            return took_s

        for streams in STREAMS:
            with ExitStack() as stack:
                ways = {"ours": timed(ours), "transformers": timed(theirs)}
                if LLAMA_PYTHON.exists():
                    ask = stack.enter_context(_llama(CHECKPOINT, streams))
                    ways["llama.cpp"] = lambda streams, ask=ask: ask(prompts(streams))
                for way in ways.values():
                    way(streams)  # warm
                found: dict[str, list[float]] = {name: [] for name in ways}
                for _ in range(ROUNDS):
                    for name, way in ways.items():
                        found[name].append(streams * ANSWER_TOKENS / way(streams))
                out[str(streams)] = found
    return out


TORCH_STREAMS = Bench(NAMES, measure)

if __name__ == "__main__":
    print(json.dumps(_rounds()))
