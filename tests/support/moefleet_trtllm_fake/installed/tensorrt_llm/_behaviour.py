"""How this fake behaves and misbehaves: JSON in MOEFLEET_TRTLLM_FAKE, read when the engine is made.

"notes N" is the section of the project's notes on TensorRT-LLM 1.2.1 that a behaviour comes from.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

VARIABLE = "MOEFLEET_TRTLLM_FAKE"


@dataclass(frozen=True)
class Behaviour:
    version: str = "1.2.1"
    # One iteration.
    step_s: float = 0.002
    # Per rank, in tokens.
    kv_tokens: int = 65536
    # An answer ends by itself after so many tokens; 0: only at max_tokens.
    answer_tokens: int = 0
    # Whether token_ids holds the end id that stopped an answer: not read in the exact source (notes 11), so both exist.
    keeps_end_id: bool = True

    # -- start (notes 8 and 9, "start-up failure": RuntimeError from the constructor, or no end)
    # "oom", "worker-died", "worker-error" or "hang".
    start: str = ""

    # -- requests
    # Iterations (counted from 1 over those that had work) whose forward pass raises: all active requests fail with
    # RequestError and the loop goes on (notes 9, "forward or sampling exception").
    forward_errors: tuple[int, ...] = ()
    forward_error: str = "sampling failed"
    # From this iteration on every one fails: a sticky CUDA error (notes 9, same row). 0: never.
    sticky_from: int = 0
    # Requests (counted from 1) that end early with success and nothing (notes 9, "silent empty output").
    empty_answers: tuple[int, ...] = ()
    # Requests that end without finish reason although nobody aborted them (notes 1.3 says only aborted ones should).
    unexplained_ends: tuple[int, ...] = ()
    # Requests that the engine refuses only when they are read (snapshot: RequestError in await / async iteration).
    late_refusals: tuple[int, ...] = ()
    # A prompt with this token is refused with ValueError by the call itself (notes 9, "bad request"). -1: none.
    refuses_token: int = -1
    # abort() has no effect: a cancel on a rank other than 0 may be lost (notes 3, attention DP).
    loses_aborts: bool = False

    # -- life. Counts are tokens made by the engine; 0: never.
    # The executor thread ends; only its log knows, _check_health stays true (notes 9, "executor thread dies").
    executor_dies_after: int = 0
    # No iteration ends any more (notes 9, "hang").
    hangs_after: int = 0
    # A worker is killed, unnoticed by the API (notes 9, "worker killed").
    worker_killed_after: int = 0
    # A worker's future raises: the next call shuts the executor down and raises (notes 9, "worker future raises").
    worker_raises_after: int = 0
    # shutdown() never returns (notes 4; #16312), and neither does the hook at exit that calls it (notes 4; #7560).
    shutdown_hangs: bool = False

    # -- statistics
    # Keys of other versions in each record (snapshot, README: "give extra unknown keys in one test").
    extra_keys: bool = False
    # get_stats raises.
    statistics_fail: bool = False


def behaviour() -> Behaviour:
    told = json.loads(os.environ.get(VARIABLE, "{}"))
    return Behaviour(**{name: tuple(v) if isinstance(v, list) else v for name, v in told.items()})
