"""The adapter's pure parts, and an adapter in this process against an engine that misbehaves."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moefleet_perf.prefixes import token_marks
from moefleet_runtime.engine.base import EngineRequest, Finish, StartFailed
from moefleet_runtime.engine.tensorrt_llm import environment
from moefleet_runtime.engine.tensorrt_llm.answers import Answer
from moefleet_runtime.engine.tensorrt_llm.contract.__main__ import settings_for
from moefleet_runtime.engine.tensorrt_llm.contract.rig import Rig
from moefleet_runtime.engine.tensorrt_llm.faults import Breaker, is_sticky, said, start_failure
from moefleet_runtime.engine.tensorrt_llm.kv_events import CacheView
from moefleet_runtime.engine.tensorrt_llm.memory import Layout
from moefleet_runtime.engine.tensorrt_llm.sampling import sampling_keywords, stops_of
from moefleet_runtime.engine.tensorrt_llm.statistics import Reader, Statistics
from moefleet_runtime.engine.tensorrt_llm.workers import Workers
from moefleet_runtime.process_tree import ProcessId, descendants, end_with_variable, with_variable
from moefleet_trtllm_fake import installed, write_checkpoint

EOS, STOP = 1, 77


def answer(**fields: Any) -> Answer:
    request = EngineRequest("r", (5, 6), 10, stop_token_ids=frozenset({STOP}))
    return Answer(request, stops_of(request, (EOS,)), 10, 0, **fields)


def output(tokens: list[int], finish: str | None = None, stop: int | str | None = None) -> Any:
    return SimpleNamespace(token_ids=tokens, finish_reason=finish, stop_reason=stop)


@given(st.lists(st.lists(st.integers(2, 99), max_size=4), max_size=8))
def test_cumulative_outputs_become_each_token_once(steps: list[list[int]]) -> None:
    read, cumulative, got = answer(), [], []
    for step in steps:
        cumulative = [*cumulative, *step]
        got += read.new_tokens(output(cumulative))
    assert got == cumulative


@pytest.mark.parametrize(
    ("tokens", "finish", "stop", "delivered"),
    [
        ([8, EOS], "stop", None, [8, EOS]),
        ([8], "stop", None, [8, EOS]),
        ([8, STOP], "stop", STOP, [8, STOP]),
        ([8], "stop", STOP, [8, STOP]),
        ([8, 9], "length", None, [8, 9]),
        ([], "stop", None, []),
    ],
)
def test_the_token_that_stopped_an_answer_is_delivered_whether_the_engine_keeps_it_or_not(
    tokens: list[int], finish: str, stop: int | None, delivered: list[int]
) -> None:
    read, last = answer(), output(tokens, finish, stop)
    assert [*read.new_tokens(last), *read.missing_stop(last)] == delivered


@pytest.mark.parametrize(
    ("tokens", "finish", "aborted", "wanted", "says"),
    [
        ([8], "stop", False, Finish.STOP, ""),
        ([8], "length", False, Finish.LENGTH, ""),
        ([8], None, True, Finish.CANCELLED, ""),
        ([8], "cancelled", False, Finish.CANCELLED, ""),
        ([8], None, False, Finish.FAILED, "after 1 tokens without a reason"),
        ([8], "timeout", False, Finish.FAILED, "timeout"),
        ([], "stop", False, Finish.FAILED, "without a token"),
        ([], "length", True, Finish.FAILED, "without a token"),
        ([8], "something new", False, Finish.FAILED, "something new"),
    ],
)
def test_every_end_of_the_engine_has_one_meaning(
    tokens: list[int], finish: str | None, aborted: bool, wanted: Finish, says: str
) -> None:
    read, last = answer(), output(tokens, finish)
    read.new_tokens(last)
    found, why = read.finish(last, aborted=aborted)
    assert found is wanted
    assert says in why


def test_several_end_tokens_are_one_end_id_and_stop_tokens() -> None:
    request = EngineRequest("r", (5,), 4, stop_token_ids=frozenset({9}))
    stops = stops_of(request, (1, 2))
    keywords = sampling_keywords(request, stops, max_tokens=4)
    assert (keywords["end_id"], keywords["stop_token_ids"], keywords["ignore_eos"]) == (1, [2, 9], False)
    ignoring = replace(request, ignore_eos=True)
    keywords = sampling_keywords(ignoring, stops_of(ignoring, (1, 2)), max_tokens=4)
    assert (keywords["end_id"], keywords["stop_token_ids"], keywords["ignore_eos"]) == (1, [9], True)


def test_requests_that_fail_together_are_one_failed_step() -> None:
    breaker = Breaker()
    for _ in range(3):
        epoch = breaker.epoch
        assert [breaker.failed(epoch) for _ in range(64)] == [True] + [False] * 63
    assert (breaker.total, breaker.in_a_row, breaker.open) == (3, 3, True)
    breaker.worked()
    assert not breaker.open


@pytest.mark.parametrize(
    ("error", "reason", "permanent", "says"),
    [
        (ValueError("LLM got invalid argument: x"), "EngineArgumentInvalid", True, "invalid argument"),
        (TypeError("no"), "EngineArgumentInvalid", True, "TypeError"),
        (FileNotFoundError("balancer.yaml"), "EngineArgumentInvalid", True, "balancer"),
        (RuntimeError("CUDA out of memory"), "OutOfMemory", True, "memoryFraction (0.7)"),
        (RuntimeError("Executor worker died during initialization"), "EngineStartFailed", False, "died"),
    ],
)
def test_a_start_failure_says_what_can_be_done(
    error: Exception, reason: str, permanent: bool, says: str
) -> None:
    failure = start_failure(error)
    assert (failure.reason, failure.permanent) == (reason, permanent)
    assert says in failure.message


def test_errors_are_short_and_those_that_stick_are_known() -> None:
    assert len(said(RuntimeError("x" * 10_000))) < 600
    assert is_sticky(RuntimeError("CUDA error: device-side assert triggered"))
    assert is_sticky(RuntimeError("[rank3] NCCL error: unhandled system error"))
    assert not is_sticky(RuntimeError("sampling failed"))


RECORD = {
    "numQueuedRequests": 4,
    "iterLatencyMS": 20.0,
    "kvCacheStats": {"usedNumBlocks": 10, "maxNumBlocks": 100, "tokensPerBlock": 32},
    "inflightBatchingStats": {"numCtxTokens": 7, "numGenRequests": 3, "numPausedRequests": 1},
}


@pytest.mark.parametrize("ranks", [1, 8])
def test_a_record_becomes_sums_over_the_pod(ranks: int) -> None:
    statistics = Statistics(ranks)
    assert statistics.absorb(RECORD)
    sums = statistics.sums.freeze()
    assert (sums.count, sums.time_s, sums.prefill_tokens, sums.sequences) == (1, 0.02, 7 * ranks, 3 * ranks)
    assert sums.kv_tokens == 320 * ranks
    # The queue is the pod's already.
    assert statistics.queued == 4
    assert (statistics.kv_used_tokens, statistics.kv_max_tokens) == (320 * ranks, 3200 * ranks)
    assert statistics.preempted_total == 1


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "numQueuedRequests": st.none() | st.integers(0, 9),
            "iterLatencyMS": st.none() | st.floats(0, 9),
            "kvCacheStats": st.none() | st.just({}) | st.just({"tokensPerBlock": 32}),
            "inflightBatchingStats": st.none() | st.just({}) | st.just({"numPausedRequests": 0}),
            "ofALaterVersion": st.just([1]),
        },
    )
)
def test_a_record_may_lack_anything(record: dict[str, Any]) -> None:
    statistics = Statistics(1)
    assert statistics.absorb(record) is False
    assert statistics.sums.freeze().count == 0


def test_a_step_that_did_nothing_is_no_progress() -> None:
    idle = {**RECORD, "inflightBatchingStats": {"numCtxTokens": 0, "numGenRequests": 0}}
    assert not Statistics(1).absorb(idle)


def test_a_record_that_cannot_be_read_does_not_end_the_reading() -> None:
    batches: list[list[Any]] = [[{"kvCacheStats": "?"}, json.dumps(RECORD)], [RECORD]]
    taken = Statistics(1)
    reader = Reader("test", lambda _: batches.pop(0) if batches else [], taken.absorb)
    reader.start()
    until(lambda: taken.sums.freeze().count == 2)
    reader.stop()
    assert reader.failed_total == 1


def until(holds: Any) -> None:
    give_up = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def stored(number: int, *hashes: int, rank: int = 0) -> dict[str, Any]:
    blocks = [{"block_hash": h, "tokens": []} for h in hashes]
    return {"event_id": number, "attention_dp_rank": rank, "data": {"type": "stored", "blocks": blocks}}


def test_the_view_of_the_cache_starts_again_after_a_gap() -> None:
    view = CacheView()
    for event in (stored(0, 1, 2), stored(1, 3), stored(0, 9, rank=1)):
        view.absorb(event)
    view.absorb({"event_id": 2, "data": {"type": "removed", "block_hashes": [2]}})
    view.absorb({"event_id": 3, "data": {"type": "of a later version"}})
    assert view.blocks == {0: {1, 3}, 1: {9}}
    view.absorb(stored(7, 4))
    assert view.blocks == {0: {4}, 1: {9}}
    assert (view.gaps_total, view.stored_total, view.removed_total) == (1, 5, 1)


def test_the_environment_is_cleaned_of_other_schedulers_and_keeps_the_autotuners_cache(
    tmp_path: Path,
) -> None:
    variables = {"SLURM_JOB_ID": "1", "PMIX_RANK": "0", "MPI_LOCALNRANKS": "8", "NCCL_DEBUG": "WARN"}
    environment.clean(variables)
    assert {n for n in variables if not n.startswith("OMPI_")} == {"NCCL_DEBUG"}
    layout = Layout("FP8", "FP8", 8, 8, True)
    environment.keep_autotuner_cache(
        variables, folder=str(tmp_path / "c"), device="NVIDIA H800", layout=layout
    )
    kept = Path(variables[environment.AUTOTUNER_CACHE])
    assert kept.parent == tmp_path / "c"
    assert kept.name == "autotuner-1.2.1-nvidia-h800-fp8-weights-attention-dp-ep8-fp8-kv-cache.json"
    other = environment.autotuner_file(tmp_path, device="NVIDIA H200", layout=layout)
    assert other.name != kept.name
    # Who sets it by hand knows better.
    environment.keep_autotuner_cache(variables, folder="elsewhere", device="", layout=layout)
    assert variables[environment.AUTOTUNER_CACHE] == str(kept)


def test_a_cache_folder_that_cannot_be_written_is_said_when_it_was_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    layout = Layout("FP8", "FP8", 8, 8, True)
    with pytest.raises(StartFailed, match="autotunerCache"):
        environment.keep_autotuner_cache({}, folder=str(file / "c"), device="", layout=layout)
    variables = {"XDG_CACHE_HOME": str(file)}
    environment.keep_autotuner_cache(variables, folder="", device="", layout=layout)
    assert environment.AUTOTUNER_CACHE not in variables


def test_lost_workers_are_named_and_helpers_are_not_missed() -> None:
    worker, other, helper = ProcessId(10, 1), ProcessId(11, 1), ProcessId(12, 1)
    alive = {
        worker: "python -m mpi4py.futures.server",
        other: "python -m mpi4py.futures.server",
        helper: "ptxas",
    }
    workers = Workers(lambda: alive)
    workers.remember()
    assert (workers.count, workers.lost()) == (2, "")
    del alive[helper], alive[other]
    # The number is given to another process: it is not the worker.
    alive[ProcessId(11, 99)] = "sh"
    assert workers.lost() == "1 of its 2 worker processes ended (pid 11)"


def test_everything_that_a_process_started_is_found_and_ended_wherever_it_went() -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
        "if os.fork() == 0:\n    os.setsid(); time.sleep(1000)\n"
        "print('up', flush=True); time.sleep(1000)"
    )
    mark = f"test-{os.getpid()}-{time.monotonic_ns()}"
    root = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "MARK": mark}, stdout=subprocess.PIPE, text=True
    )
    assert root.stdout is not None
    assert root.stdout.readline() == "up\n"
    assert len(descendants(root.pid)) == 2
    root.kill()
    root.wait()
    # A program that has just begun shows no environment yet: the kernel copies it after `exec` has answered.
    until_s = time.monotonic() + 10
    while len(with_variable("MARK", mark)) < 2 and time.monotonic() < until_s:
        time.sleep(0.01)
    assert len(with_variable("MARK", mark)) == 2
    assert not end_with_variable("MARK", mark, within_s=10)
    root.stdout.close()


# -- an adapter in this process


@pytest.fixture
def made(tmp_path: Path) -> Any:
    return settings_for(
        write_checkpoint(tmp_path / "model"), tensor=2, attention_data=False, args={"gpuMemoryGib": 80}
    )


def test_steps_that_fail_one_after_the_other_end_the_engine(made: Any) -> None:
    with installed(forward_errors=[1, 2, 3]):
        rig = Rig(made, patience_s=5)
        for _ in range(3):
            rig.submit(rig.prompt(4), 8)
            until(lambda: rig.died_of or not rig.engine.load().active)
        until(lambda: rig.died_of)
        assert "3 steps in a row failed" in rig.died_of
        rig.engine.stop()


def test_failures_with_work_in_between_do_not(made: Any) -> None:
    with installed(forward_errors=[1, 12, 23, 34]):
        rig = Rig(made, patience_s=5)
        for _ in range(4):
            failed, served = rig.ask(rig.prompt(4), 8), rig.ask(rig.prompt(4), 8)
            assert (failed.finishes, served.finishes) in (
                ([Finish.FAILED], [Finish.LENGTH]),
                ([Finish.LENGTH], [Finish.FAILED]),
                ([Finish.LENGTH], [Finish.LENGTH]),
            )
        assert not rig.died_of
        assert rig.engine.load().failed_steps_total >= 2
        rig.engine.stop()


@pytest.mark.parametrize("keeps", [True, False])
def test_an_answer_that_ends_by_itself_has_its_end_token(made: Any, keeps: bool) -> None:
    with installed(answer_tokens=6, keeps_end_id=keeps):
        rig = Rig(made, patience_s=5)
        got = rig.ask(rig.prompt(4), 20, ignore_eos=False)
        assert (len(got.tokens), got.tokens[-1], got.finishes) == (
            6,
            rig.info.eos_token_ids[0],
            [Finish.STOP],
        )
        assert rig.engine.load().output_tokens_total == 6
        rig.engine.stop()


@pytest.mark.parametrize(
    ("behaviour", "finish", "says"),
    [
        ({"unexplained_ends": [1]}, Finish.FAILED, "without a reason"),
        ({"late_refusals": [1]}, Finish.FAILED, "longer than max_seq_len"),
        ({"refuses_token": 9}, Finish.REFUSED, "ValueError"),
    ],
)
def test_an_end_that_nobody_asked_for_is_no_answer(
    made: Any, behaviour: dict[str, Any], finish: Finish, says: str
) -> None:
    with installed(**behaviour):
        rig = Rig(made, patience_s=5)
        got = rig.ask((9, 8), 20)
        assert got.finishes == [finish]
        assert says in got.error
        assert rig.engine.load().failed_steps_total == (finish is Finish.FAILED)
        assert rig.ask(rig.prompt(4), 8).finishes == [Finish.LENGTH]
        rig.engine.stop()


def test_an_engine_that_was_shut_down_from_within_is_dead(made: Any) -> None:
    with installed():
        rig = Rig(made, patience_s=5)
        rig.engine._api.llm._inner._shut_down = True
        until(lambda: rig.died_of)
        assert "shut down from within" in rig.died_of
        rig.engine._api.llm._inner._end_workers()
        rig.engine.stop()


def test_kv_events_are_read_when_they_are_asked_for(made: Any) -> None:
    args = made.arguments.model_validate(
        {"gpuMemoryGib": 80, "kv_cache_config": {"event_buffer_max_size": 64}}
    )
    with installed():
        rig = Rig(replace(made, arguments=args), patience_s=5)
        prompt = rig.prompt(100)
        rig.ask(prompt, 4)
        until(lambda: rig.engine.cache.stored_total == 3)
        assert len(rig.engine.cache.blocks[0]) == 3
        # 96 of the 100 tokens, as pickers name them; a second drain has nothing new.
        told, again = rig.engine.prefix_changes(), rig.engine.prefix_changes()
        assert told.stored == token_marks(prompt)
        assert len(told.stored) == 3
        assert not again
        rig.engine.stop()


def test_without_kv_events_nobody_is_told_what_would_never_be_taken_back(made: Any) -> None:
    with installed():
        rig = Rig(made, patience_s=5)
        rig.ask(rig.prompt(100), 4)
        assert rig.engine.prefix_changes() is None
        rig.engine.stop()


def test_no_thread_is_left_that_keeps_a_process_alive(made: Any) -> None:
    with installed():
        rig = Rig(made, patience_s=5)
        rig.ask(rig.prompt(4), 4)
        assert all(t.daemon for t in threading.enumerate() if t.name.startswith("trtllm"))
        rig.engine.stop()
        assert json.dumps(rig.engine.load().active) == "0"
