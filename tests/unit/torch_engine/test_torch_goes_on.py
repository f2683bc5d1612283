"""An answer that another replica began: the Torch engine makes the very tokens that an undisturbed run makes."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_runtime.engine.base import Finish, Guide, RequestInvalid
from moefleet_testing.torch_engine import RunningEngine, request, settings

PROMPT = list(range(300, 340))
LENGTH = 40


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "seed": 1 << 63, "top_p": 0.9, "top_k": 50, "min_p": 0.01},
        {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
        {"temperature": 1.5, "seed": 3, "frequency_penalty": 1.0, "min_tokens": 30},
        {"temperature": 1.0, "seed": 5, "guide": Guide("regex", "[a-z ]{60,80}"), "ignore_eos": False},
        {"logprobs": 2},
    ],
    ids=str,
)
def test_it_goes_on_with_the_tokens_of_an_undisturbed_run(asked: dict[str, Any]) -> None:
    asked = {"ignore_eos": True, **asked}
    with RunningEngine(settings()) as whole, RunningEngine(settings()) as other:
        (answer,) = whole.answers(request("whole", PROMPT, LENGTH, **asked))
        end = whole.out.ends["whole"]
        # At once, within a block, at the end of one, before the last token.
        for cut in sorted({0, 1, 7, 24, len(answer) - 1}):
            if not 0 <= cut < len(answer):
                continue
            name = f"cut at {cut}"
            (rest,) = other.answers(request(name, PROMPT, LENGTH, generated=tuple(answer[:cut]), **asked))
            assert answer[:cut] + rest == answer, name
            assert other.out.ends[name].finish is end.finish
            # What was found in the cache of the answer is not told as found of the prompt.
            assert other.out.first[name].cached_tokens <= len(PROMPT)
        other.check_nothing_held()


def test_what_is_complete_already_is_refused_by_name() -> None:
    with RunningEngine(settings()) as running:
        with pytest.raises(RequestInvalid, match="generated: wanted fewer tokens than max_tokens"):
            running.engine.submit(request("full", PROMPT, 3, generated=(5, 6, 7)))
        with pytest.raises(RequestInvalid, match="token ids"):
            running.engine.submit(request("unknown", PROMPT, 3, generated=(1 << 30,)))
        guided = {"guide": Guide("regex", "a"), "temperature": 1.0, "seed": 1}
        (answer,) = running.answers(request("guided", PROMPT, 8, **guided))
        assert running.out.finish("guided") is Finish.STOP
        with pytest.raises(RequestInvalid, match="generated: the guide"):
            running.engine.submit(request("again", PROMPT, 8, generated=tuple(answer), **guided))
