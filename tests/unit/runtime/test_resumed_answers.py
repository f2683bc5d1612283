"""An answer that broke off and goes on at another replica reads as if nothing had been: text, tokens, usage, end."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime.serving.asking import Asked
from moefleet_runtime.serving.checks import ModelLimits
from moefleet_runtime.serving.stopping import AnswerText
from moefleet_runtime.tokenizer import FIRST_BYTE, SyllableTokenizer
from moefleet_runtime_rig.answering import LONGEST, AnsweringReplica

BYTES = SyllableTokenizer(1000)


def give_out(answer: AnswerText, tokens: list[int], *, last: bool) -> tuple[list[int], str, str | None]:
    """In messages of up to three tokens."""
    out, text, stop = [], "", None
    for at in range(0, len(tokens), 3) if tokens else (0,):
        said = answer.push(tokens[at : at + 3], last=last and at + 3 >= len(tokens))
        out, text, stop = out + said.tokens, text + said.text, said.stop
        if stop is not None:
            break
    return out, text, stop


@given(
    text=st.text("aböü日👩 \n", min_size=1, max_size=30),
    stops=st.lists(st.text("abö👩\n", min_size=1, max_size=3), max_size=2),
    cut=st.integers(0, 60),
    min_tokens=st.sampled_from([0, 5]),
)
@example(text="xaby", stops=["abz"], cut=2, min_tokens=0)
@example(text="日本", stops=[], cut=4, min_tokens=0)
@settings(max_examples=200, deadline=None)
def test_two_replicas_say_what_one_says(text: str, stops: list[str], cut: int, min_tokens: int) -> None:
    tokens = [FIRST_BYTE + b for b in text.encode()]
    expected = give_out(AnswerText(BYTES.decoder(), stops, min_tokens), tokens, last=True)
    first = AnswerText(BYTES.decoder(), stops, min_tokens)
    # Broken off before the end: the consumer has whole messages, and never the last one.
    has, has_text, stop = give_out(first, tokens[: min(cut, len(tokens) - 1)], last=False)
    if stop is not None:
        return
    second = AnswerText(BYTES.decoder(), stops, min_tokens)
    assert second.resume(has, len(has_text)) is None
    assert second.used == len(has)
    # The engine makes again what the consumer does not have: it was held back, or lost.
    rest, rest_text, stop = give_out(second, tokens[len(has) :], last=True)
    assert (has + rest, has_text + rest_text, stop) == expected


LIMITS = ModelLimits(64, 400, 64, (1,))


@pytest.mark.parametrize(
    ("generated", "asked", "over"),
    [
        ((), {}, None),
        ((5, 6), {}, None),
        ((5, 1), {}, "STOP"),
        ((5, 1), {"ignore_eos": True}, None),
        ((5, 1), {"min_tokens": 3}, None),
        ((5, 9), {"stop_token_ids": (9,), "ignore_eos": True}, "STOP"),
        ((5, 6, 7, 8), {}, "LENGTH"),
        ((5, 6, 7, 1), {}, "STOP"),
    ],
)
def test_an_answer_that_lacks_only_its_last_message(
    generated: tuple[int, ...], asked: dict[str, object], over: str | None
) -> None:
    found = Asked(generated=generated, **asked).over(LIMITS, max_tokens=4)  # type: ignore[arg-type]
    assert (found and found.name) == over


def resumed(tokens: list[int], characters: int = 0, **stopping: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model="m",
        token_ids=pb.TokenIds(ids=[7, 8]),
        stopping=pb.Stopping(max_tokens=6, **stopping),  # type: ignore[arg-type]
        resume=pb.Resume(token_ids=tokens, text_characters=characters),
    )


def test_the_engine_hears_of_one_answer_and_usage_is_that_of_one_request() -> None:
    replica = AnsweringReplica()
    replica.ask(replica.inference, resumed([40, 41]))
    (request,) = replica.engine.requests
    assert (request.prompt, request.generated, request.max_tokens) == ((7, 8), (40, 41), 6)


@pytest.mark.parametrize(
    ("tokens", "stopping", "finish", "stopped_by"),
    [
        ([40, 41, 42, 43, 44, 45], {}, pb.FINISH_REASON_LENGTH, None),
        ([40, 1], {}, pb.FINISH_REASON_STOP, "stop_token_id"),
        ([FIRST_BYTE + b for b in b"abc"], {"stop": ["bc"]}, pb.FINISH_REASON_STOP, "stop"),
    ],
)
def test_what_was_over_gets_its_last_message_without_the_engine(
    tokens: list[int], stopping: dict[str, object], finish: int, stopped_by: str | None
) -> None:
    replica = AnsweringReplica()
    (message,) = replica.ask(replica.inference, resumed(tokens, 1, **stopping)).written
    assert not replica.engine.requests
    assert (message.finish_reason, message.WhichOneof("stopped_by")) == (finish, stopped_by)
    assert (message.usage.prompt_tokens, message.usage.completion_tokens) == (2, len(tokens))
    assert not message.token_ids


@pytest.mark.parametrize(
    "tokens", [[5] * 7, [4000], [5] * LONGEST], ids=["more than max_tokens", "unknown", "more than all"]
)
def test_what_cannot_be_is_refused_by_name(tokens: list[int]) -> None:
    replica = AnsweringReplica()
    assert replica.ask(replica.inference, resumed(tokens)).fields == ["resume.token_ids"]
