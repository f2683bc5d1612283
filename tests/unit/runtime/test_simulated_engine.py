"""The Simulated engine in real time. What a noisy machine can break is not asserted: only what must hold however late it is."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import moefleet_perf as perf
import pytest
from moefleet_runtime.engine.arguments import SimulatedArguments, TensorRTLLMArguments
from moefleet_runtime.engine.base import (
    Engine,
    EngineDead,
    EngineRequest,
    EngineSettings,
    Finish,
    StartFailed,
    TokenDelta,
)
from moefleet_runtime.engine.registry import make_engine

NODE = perf.load_calibration("deepseek-v2-8xh800")


class Collector:
    def __init__(self) -> None:
        self.deltas_seen: list[TokenDelta] = []
        self.calls = 0
        self.deaths: list[str] = []
        self._ended = threading.Condition()

    def deltas(self, batch: Sequence[TokenDelta]) -> None:
        with self._ended:
            self.deltas_seen.extend(batch)
            self.calls += 1
            self._ended.notify_all()

    def died(self, reason: str) -> None:
        self.deaths.append(reason)

    def wait_for_ends(self, count: int) -> None:
        with self._ended:
            done = self._ended.wait_for(
                lambda: sum(d.finish is not None for d in self.deltas_seen) >= count, timeout=60
            )
        assert done, f"{self.deltas_seen[-3:]} {self.deaths}"

    def tokens(self, request_id: str) -> list[int]:
        return [t for d in self.deltas_seen if d.request_id == request_id for t in d.tokens]


def settings(arguments: dict[str, Any], **fields: Any) -> EngineSettings:
    return EngineSettings(
        **{
            "model_name": "m",
            "model_path": None,
            "context_length": 4096,
            "arguments": SimulatedArguments.model_validate(arguments),
            "max_batch_size": 0,
            "max_batch_tokens": 0,
            **fields,
        }
    )


def made(arguments: dict[str, Any] | None = None, **fields: Any) -> Engine:
    return make_engine("Simulated", settings(arguments or {}, **fields))


def test_tokens_come_no_earlier_than_the_calibration_says_and_all_of_them() -> None:
    engine, sink = made(), Collector()
    info = engine.start(sink)
    assert (info.vocabulary_size, info.max_batch_size) == (102400, 8192)
    began_s = time.monotonic()
    for number in range(3):
        engine.submit(EngineRequest(f"r{number}", tuple(range(300, 400)), 20))
    sink.wait_for_ends(3)
    took_s = time.monotonic() - began_s
    load = engine.load()
    engine.stop()
    assert [len(sink.tokens(f"r{n}")) for n in range(3)] == [20] * 3
    assert took_s >= 20 * NODE.step.a_s
    # The clock of the steps is the calibration's, not the machine's.
    steps, model = load.steps, NODE.step
    expected_s = (
        steps.count * model.a_s
        + model.b_s * steps.prefill_tokens
        + model.c_s * steps.sequences
        + model.d_s * steps.kv_tokens
    )
    assert steps.time_s == pytest.approx(expected_s)
    assert load.output_tokens_total == 60
    assert sink.deaths == []


def test_short_steps_are_handed_over_several_at_a_time() -> None:
    engine, sink = made({"speed": 100.0}), Collector()
    engine.start(sink)
    engine.submit(EngineRequest("r", (300,), 1000))
    sink.wait_for_ends(1)
    engine.stop()
    assert len(sink.tokens("r")) == 1000
    # Steps of 0.13 ms, a hand-over each 5 ms.
    assert sink.calls < 200


def test_a_waiting_engine_uses_no_processor() -> None:
    engine, sink = made({"speed": 0.01}), Collector()
    engine.start(sink)
    engine.submit(EngineRequest("r", (300,), 1000))
    # Processor time, so that a busy machine changes nothing.
    before_s = time.process_time()
    time.sleep(1.0)
    used_s = time.process_time() - before_s
    engine.stop()
    assert used_s < 0.25
    assert sink.deltas_seen[-1].finish is Finish.CANCELLED


def test_after_stop_it_takes_nothing_and_stop_again_is_harmless() -> None:
    engine, sink = made(), Collector()
    with pytest.raises(EngineDead):
        engine.submit(EngineRequest("early", (300,), 1))
    engine.start(sink)
    engine.stop()
    engine.stop()
    with pytest.raises(EngineDead):
        engine.submit(EngineRequest("late", (300,), 1))


def test_the_fleets_limits_bind_where_they_are_tighter() -> None:
    def limits(**fields: Any) -> tuple[int, int]:
        engine = made(**fields)
        info = engine.start(Collector())
        engine.stop()
        return info.max_batch_size, info.max_batch_tokens

    assert limits() == (8192, 8192)
    assert limits(max_batch_size=1024, max_batch_tokens=4096) == (1024, 4096)
    ranks = {"tensor_parallel": 8, "attention_data_parallel": True}
    assert limits(max_batch_size=512, max_batch_tokens=100_000, **ranks) == (4096, 8192)


def test_a_calibration_can_be_given_in_place() -> None:
    info = made({"calibration": {"base": "deepseek-v2-8xh800", "limits": {"maxSequences": 7}}}).start(
        Collector()
    )
    assert info.max_batch_size == 7


@pytest.mark.parametrize(
    ("kind", "arguments", "reason", "says"),
    [
        ("Simulated", {"calibration": "none"}, "EngineArgumentInvalid", "deepseek-v2-8xh800"),
        ("Simulated", {"faults": {"failStart": "no GPU"}}, "EngineStartFailed", "no GPU"),
        ("TensorRTLLM", None, "EngineUnavailable", "has no tensorrt_llm"),
        ("Turbo", None, "EngineUnavailable", "'Turbo'"),
    ],
)
def test_an_engine_that_cannot_start_says_why(kind: str, arguments: Any, reason: str, says: str) -> None:
    made_of = settings(arguments or {})
    if arguments is None:
        made_of = replace(made_of, arguments=TensorRTLLMArguments())
    with pytest.raises(StartFailed) as failed:
        make_engine(kind, made_of).start(Collector())
    assert failed.value.reason == reason
    assert says in failed.value.message
