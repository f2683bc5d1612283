"""An answer that another replica began goes on in the Simulated engine with the very tokens, and costs what it costs."""

from __future__ import annotations

import moefleet_perf as perf
import pytest
from moefleet_runtime.engine.base import EngineRequest, Finish, RequestInvalid, TokenDelta
from moefleet_runtime.engine.simulated_replica import SimulatedReplica

NODE = perf.load_calibration("deepseek-v2-8xh800")
PROMPT = tuple(range(300, 400))


def answer(replica: SimulatedReplica, request: EngineRequest) -> list[TokenDelta]:
    replica.submit(request, (), 0.0)
    out: list[TokenDelta] = []
    while (due_s := replica.due_s()) is not None:
        out += replica.catch_up(due_s)
    return out


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "seeded"])
@pytest.mark.parametrize("cut", [1, 5, 19])
def test_the_tokens_are_those_of_an_undisturbed_run(asked: dict[str, object], cut: int) -> None:
    def replica() -> SimulatedReplica:
        return SimulatedReplica(NODE, vocabulary_size=102400, mean_output_tokens=400)

    whole = answer(replica(), EngineRequest("whole", PROMPT, 20, **asked))  # type: ignore[arg-type]
    tokens = tuple(t for d in whole for t in d.tokens)
    assert len(tokens) == 20 or whole[-1].finish is Finish.STOP
    other = replica()
    rest = answer(other, EngineRequest("rest", PROMPT, 20, generated=tokens[:cut], **asked))  # type: ignore[arg-type]
    assert tokens[:cut] + tuple(t for d in rest for t in d.tokens) == tokens
    assert rest[-1].finish is whole[-1].finish
    # The prompt and the answer so far are computed, one token a step is made; the prompt alone is a prompt.
    load = other.load()
    assert load.steps.prefill_tokens == len(PROMPT) + cut
    assert (load.prompt_tokens_total, load.output_tokens_total) == (len(PROMPT), len(tokens) - cut)


def test_what_is_complete_already_is_refused() -> None:
    replica = SimulatedReplica(NODE, vocabulary_size=102400)
    with pytest.raises(RequestInvalid, match="max_tokens is 2"):
        replica.submit(EngineRequest("r", PROMPT, 2, generated=(5, 6)), (), 0.0)
