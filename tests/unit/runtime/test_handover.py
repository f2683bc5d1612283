"""Which answers are handed over, and with which request."""

from __future__ import annotations

import pytest
from moefleet.inference.v1 import inference_pb2 as pb
from moefleet_runtime.serving.generation import Piece, Usage
from moefleet_runtime.serving.handover import HANDOVER_HEADER, Handover, Sent, rest_of


@pytest.mark.parametrize(
    ("target", "metadata", "possible"),
    [
        ("dns:///chat.team:8500", (), True),
        ("dns:///chat.team:8500", None, True),
        ("dns:///chat.team:8500", (("other", "1"),), True),
        # Nobody to ask, and a request that is relayed already: two replicas must not send it to and fro.
        ("", (), False),
        ("dns:///chat.team:8500", ((HANDOVER_HEADER, "1"),), False),
    ],
)
def test_who_may_be_handed_over(
    target: str, metadata: tuple[tuple[str, str], ...] | None, possible: bool
) -> None:
    assert Handover(target).possible_for(metadata) is possible


def test_a_peer_is_asked_for_what_the_consumer_does_not_have() -> None:
    request = pb.GenerateRequest(model="m", prompt="x", stopping=pb.Stopping(max_tokens=9))
    sent = Sent()
    # Died before a word: the same request.
    assert rest_of(request, "r1", sent) == pb.GenerateRequest(
        request_id="r1", model="m", prompt="x", stopping=pb.Stopping(max_tokens=9)
    )
    for tokens, text in (([5, 6], "ä"), ([7], ""), ([], "bc")):
        sent.add(Piece(tokens, Usage(1, 0, 0), text=text))
    rest = rest_of(request, "r1", sent)
    assert (list(rest.resume.token_ids), rest.resume.text_characters) == ([5, 6, 7], 3)
    assert not request.HasField("resume")


def test_an_answer_that_came_here_resumed_is_handed_over_whole() -> None:
    request = pb.GenerateRequest(prompt="x", resume=pb.Resume(token_ids=[1, 2], text_characters=4))
    rest = rest_of(request, "r1", Sent([3], 1))
    assert (list(rest.resume.token_ids), rest.resume.text_characters) == ([1, 2, 3], 5)
