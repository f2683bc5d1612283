"""When an answer that broke off goes on, with which request, and what its reader gets: tables over pure functions."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st
from moefleet.client import (
    FinishReason,
    MoefleetError,
    Overloaded,
    ResumePolicy,
    Sampling,
    Stopping,
    Unavailable,
)
from moefleet.client.course import Run, new_run
from moefleet.client.errors import Failure, error_of, failure_of
from moefleet.client.resuming import INCOMPLETE, Again, Course, GiveUp, plan
from moefleet.inference.v1 import inference_pb2 as pb

Code = grpc.StatusCode
BEGUN = Course(begun=True, breaks=1)
NEW = Course(fruitless=1)
POLICY = ResumePolicy(most=2, attempts=3, first_wait_s=0.1, longest_wait_s=0.3)


@pytest.mark.parametrize(
    ("course", "failure", "left_s", "expected"),
    [
        # In the middle: whatever a broken connection or a dead replica looks like. At once.
        *(
            (BEGUN, Failure(code), None, Again(0.0))
            for code in (Code.UNAVAILABLE, Code.INTERNAL, Code.CANCELLED)
        ),
        (BEGUN, Failure(Code.UNKNOWN), 5.0, Again(0.0)),
        (BEGUN, INCOMPLETE, None, Again(0.0)),
        # As the replica asks, or later.
        (BEGUN, Failure(Code.UNAVAILABLE, retry_after_s=0.2), None, Again(0.2)),
        (replace(BEGUN, fruitless=1), Failure(Code.UNAVAILABLE, retry_after_s=0.001), None, Again(0.05)),
        # The next replica is full: no reason to give up half an answer, but nobody's before it has begun.
        (replace(BEGUN, fruitless=1), Failure(Code.RESOURCE_EXHAUSTED, retry_after_s=1.0), None, Again(1.0)),
        (NEW, Failure(Code.RESOURCE_EXHAUSTED, retry_after_s=1.0), None, GiveUp()),
        # Before the first message only what says nothing of the request.
        (NEW, Failure(Code.UNAVAILABLE), None, Again(0.05)),
        (NEW, Failure(Code.INTERNAL), None, GiveUp()),
        (NEW, INCOMPLETE, None, GiveUp()),
        # What another replica would say too.
        *((BEGUN, Failure(code), None, GiveUp()) for code in (Code.INVALID_ARGUMENT, Code.DEADLINE_EXCEEDED)),
        *((BEGUN, Failure(code), None, GiveUp()) for code in (Code.NOT_FOUND, Code.PERMISSION_DENIED)),
        # Waits grow up to a limit.
        (replace(BEGUN, fruitless=2), Failure(Code.UNAVAILABLE), None, Again(0.1)),
        (
            replace(NEW, fruitless=9),
            Failure(Code.UNAVAILABLE),
            None,
            GiveUp("9 calls in a row brought nothing"),
        ),
        (replace(BEGUN, breaks=2), Failure(Code.UNAVAILABLE), None, Again(0.0)),
        (
            replace(BEGUN, breaks=3),
            Failure(Code.UNAVAILABLE),
            None,
            GiveUp("it broke off 3 times, and may go on 2 times"),
        ),
        # Never beyond the time of the call.
        (BEGUN, Failure(Code.UNAVAILABLE), 0.01, Again(0.0)),
        (
            BEGUN,
            Failure(Code.UNAVAILABLE, retry_after_s=0.2),
            0.1,
            GiveUp("0.1 s are left of the call's time, the next attempt is in 0.2 s"),
        ),
        (
            BEGUN,
            Failure(Code.UNAVAILABLE),
            0.0,
            GiveUp("0 s are left of the call's time, the next attempt is in 0 s"),
        ),
    ],
)
def test_the_plan(course: Course, failure: Failure, left_s: float | None, expected: Again | GiveUp) -> None:
    assert plan(POLICY, course, failure, left_s=left_s, chance=0.0) == expected


@given(
    st.builds(Course, st.booleans(), st.integers(0, 5), st.integers(0, 40), st.integers(0, 3)),
    st.sampled_from(list(Code)),
    st.floats(0, 100),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.floats(0, 10),
)
def test_no_wait_is_longer_than_what_is_left(
    course: Course, code: grpc.StatusCode, left_s: float, chance: float, retry_after_s: float | None
) -> None:
    found = plan(POLICY, course, Failure(code, retry_after_s=retry_after_s), left_s=left_s, chance=chance)
    if isinstance(found, Again):
        assert max(retry_after_s or 0.0, 0.0) <= found.wait_s < left_s
    assert plan(replace(POLICY, most=0), course, Failure(code), left_s=left_s, chance=chance) == GiveUp()


def message(*tokens: int, text: str = "", **fields: object) -> pb.GenerateResponse:
    return pb.GenerateResponse(token_ids=tokens, text=text, **fields)  # type: ignore[arg-type]


LAST = {
    "finish_reason": pb.FINISH_REASON_STOP,
    "stop": "zz",
    "usage": pb.Usage(prompt_tokens=3, completion_tokens=9),
}
GONE = Failure(Code.UNAVAILABLE, "gone")


def test_each_call_asks_for_what_has_not_come() -> None:
    run = new_run("m", "text", {"request_id": "mine", "stopping": Stopping(max_tokens=9)})
    first = run.next_request()
    assert (first.request_id, first.prompt, first.HasField("resume")) == ("mine", "text", False)
    # Died before a word: the same again.
    assert run.broke(GONE, left_s=None, chance=0.0) > 0
    assert run.next_request() == pb.GenerateRequest.FromString(
        first.SerializeToString().replace(b"mine", b"mine~2").replace(b"\n\x04", b"\n\x06")
    )
    assert run.take(message(5, 6, text="äb", request_id="mine~2")) is not None
    assert run.take(message(7)) is not None
    assert run.broke(GONE, left_s=None, chance=0.0) == 0
    second = run.next_request()
    assert (list(second.resume.token_ids), second.resume.text_characters) == ([5, 6, 7], 2)
    assert (second.stopping, second.sampling, second.prompt) == (first.stopping, first.sampling, "text")
    assert run.take(message(8, text="c")) is not None
    assert run.broke(INCOMPLETE, left_s=None, chance=0.0) == 0
    third = run.next_request()
    assert (list(third.resume.token_ids), third.resume.text_characters) == ([5, 6, 7, 8], 3)
    # Only the last message was lost.
    assert run.take(message(**LAST)) is None
    answer = run.answer
    assert run.over
    assert (answer.token_ids, answer.text, answer.resumed) == ((5, 6, 7, 8), "äbc", 2)
    assert (answer.finish_reason, answer.stopped_by, answer.request_id) == (FinishReason.STOP, "zz", "mine")
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9


@pytest.mark.parametrize("reason", ["ENGINE_DIED", "STEP_FAILED"])
def test_a_request_that_engines_die_of_does_not_go_through_the_fleet(reason: str) -> None:
    died = Failure(Code.UNAVAILABLE, "dead", reason)
    run = new_run("m", "x", {"resume": ResumePolicy(deaths=2)})
    run.broke(died, left_s=None, chance=0.0)
    # Pods that are killed from outside are another matter.
    run.broke(GONE, left_s=None, chance=0.0)
    with pytest.raises(Unavailable, match="2 calls ended with an engine's failure") as caught:
        run.broke(died, left_s=None, chance=0.0)
    assert caught.value.suspect
    assert not caught.value.safe_to_retry


def test_a_seed_is_drawn_where_chance_decides_and_kept() -> None:
    run = new_run("m", [1, 2], {"sampling": Sampling(temperature=0.5)})
    first = run.next_request()
    assert first.sampling.seed == run.answer.seed
    run.take(message(5))
    run.broke(GONE, left_s=None, chance=0.0)
    assert run.next_request().sampling == first.sampling
    assert new_run("m", [1], {}).answer.seed is None
    assert new_run("m", [1], {"sampling": Sampling(temperature=1, seed=7)}).answer.seed == 7
    assert first.sampling.seed != new_run("m", [1], {"sampling": Sampling(temperature=0.5)}).answer.seed


def test_an_answer_that_somebody_began_goes_on_from_there() -> None:
    begun = pb.GenerateRequest(model="m", prompt="x", resume=pb.Resume(token_ids=[1, 2], text_characters=4))
    run = Run(begun, ResumePolicy())
    assert run.next_request() == begun
    run.take(message(3, text="ab"))
    run.broke(INCOMPLETE, left_s=None, chance=0.0)
    again = run.next_request().resume
    assert (list(again.token_ids), again.text_characters) == ([1, 2, 3], 6)
    assert (run.answer.token_ids, run.answer.resumed) == ((3,), 1)


def test_a_long_request_id_stays_within_the_limit() -> None:
    run = new_run("m", "x", {"request_id": "i" * 256})
    assert run.next_request().request_id == "i" * 256
    assert run.next_request().request_id == "i" * 254 + "~2"


def test_what_cannot_go_on_carries_what_came() -> None:
    run = new_run("m", "x", {"resume": ResumePolicy(most=1)})
    run.next_request()
    run.take(message(5, text="a"))
    run.broke(GONE, left_s=None, chance=0.0)
    run.next_request()
    run.take(message(6, text="b"))
    with pytest.raises(Unavailable, match=r"BROKEN_OFF: .*gone\) \(it broke off 2 times") as caught:
        run.broke(GONE, left_s=None, chance=0.0)
    assert caught.value.partial is not None
    assert (caught.value.partial.text, caught.value.partial.resumed) == ("ab", 1)


@pytest.mark.parametrize(
    ("came", "failure", "reason"),
    [
        # Envoy's reset, and a gateway's connection that ended: nobody of ours could say anything.
        (True, Failure(Code.INTERNAL, "Received RST_STREAM with error code 2"), "BROKEN_OFF"),
        (True, Failure(Code.UNAVAILABLE, ""), "BROKEN_OFF"),
        (True, INCOMPLETE, "BROKEN_OFF"),
        # Who could speak is quoted; before the first message, and with other statuses, nothing is known.
        (True, Failure(Code.INTERNAL, "the step failed", "STEP_FAILED"), "STEP_FAILED"),
        (True, Failure(Code.DEADLINE_EXCEEDED, "Deadline Exceeded"), ""),
        (False, Failure(Code.INTERNAL, "Received RST_STREAM with error code 2"), ""),
    ],
)
def test_who_does_not_go_on_is_told_what_a_reset_means(came: bool, failure: Failure, reason: str) -> None:
    run = new_run("m", "x", {"resume": ResumePolicy(most=0)})
    run.next_request()
    if came:
        run.take(message(5, text="a"))
    with pytest.raises(MoefleetError) as caught:
        run.broke(failure, left_s=None, chance=0.0)
    assert (caught.value.code, caught.value.reason) == (failure.code, reason)
    assert failure.message in str(caught.value)
    assert ("asking again is safe" in str(caught.value)) == (reason == "BROKEN_OFF")


def trailers(*details: object) -> list[tuple[str, bytes | str]]:
    status = status_pb2.Status(code=8, message="full")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return [("other", "x"), ("grpc-status-details-bin", status.SerializeToString())]


def test_details_become_attributes() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromNanoseconds(1_500_000_000)
    info = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="d", metadata={"queuedRequests": "9"})
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="model", description="is empty")
    error = error_of(failure_of(Code.RESOURCE_EXHAUSTED, "full", trailers(retry, info, bad)))
    assert isinstance(error, Overloaded)
    assert (error.reason, error.retry_after_s, error.safe_to_retry) == ("QUEUE_FULL", 1.5, True)
    assert (error.metadata, error.violations) == ({"queuedRequests": "9"}, (("model", "is empty"),))
    assert str(error) == "RESOURCE_EXHAUSTED QUEUE_FULL: full"


@pytest.mark.parametrize("raw", [None, [], [("grpc-status-details-bin", b"\xff\xff")]])
def test_a_status_without_readable_details_still_counts(raw: list[tuple[str, bytes]] | None) -> None:
    error = error_of(failure_of(Code.PERMISSION_DENIED, None, raw))
    assert type(error) is MoefleetError
    assert (error.code, error.reason, error.safe_to_retry) == (Code.PERMISSION_DENIED, "", False)
