"""Who comes in, what is wrong with a request, and what a problem looks like on the wire."""

import asyncio

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from moefleet_runtime.ending import Failure
from moefleet_runtime.host.stream import TokenStream
from moefleet_runtime.life import (
    CanaryPassed,
    DrainWanted,
    EngineStarted,
    Failed,
    HostUp,
    Life,
    advance,
)
from moefleet_runtime.serving import checks
from moefleet_runtime.serving.admission import Admission
from moefleet_runtime.serving.control import Changes
from moefleet_runtime.serving.problems import Problem, Violation, full, invalid, refusal

SERVING = Life(born_s=0.0)
for step in (HostUp(), EngineStarted(), CanaryPassed()):
    SERVING = advance(SERVING, step, 1.0)
LIMITS = checks.ModelLimits(context_length=100, vocabulary_size=1000, kv_max_tokens=80)


class Door:
    def __init__(self, life: Life = SERVING, places: int = 3) -> None:
        self.life = life
        self.inside: list[int] = []
        self.admission = Admission(
            pod_uid="u1",
            model_name="m",
            queued_requests=1,
            life=lambda: self.life,
            on_change=self.inside.append,
        )
        self.admission.places = places


def refused(door: Door, *metadata: tuple[str, str]) -> str | None:
    try:
        door.admission.check(metadata)
    except Problem as problem:
        return problem.refused
    return None


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ((), None),
        ((("x-moefleet-pod-uids", "u1"), ("x-moefleet-model", "m")), None),
        ((("x-moefleet-pod-uids", "u0, u1"),), None),
        ((("x-moefleet-pod-uids", "u0,u11"),), "wrong-pod"),
        ((("x-moefleet-pod-uids", ""),), "wrong-pod"),
        ((("x-moefleet-model", "m2"),), "wrong-model"),
        ((("user-agent", "x"),), None),
    ],
)
def test_only_what_is_meant_for_this_replica_comes_in(
    metadata: tuple[tuple[str, str], ...], wanted: str | None
) -> None:
    door = Door()
    assert refused(door, *metadata) == wanted
    assert door.admission.refused_total == (0 if wanted is None else 1)


def test_states_that_take_no_work_say_so_and_a_wrong_address_is_told_first() -> None:
    drains = advance(SERVING, DrainWanted("Rollout"), 2.0)
    failed = advance(drains, Failed(Failure("EngineDied", "x")), 3.0)
    assert refused(Door(drains)) == "draining"
    assert refused(Door(Life(born_s=0.0))) == "not-serving"
    assert refused(Door(failed)) == "not-serving"
    assert refused(Door(drains), ("x-moefleet-model", "m2")) == "wrong-model"


def test_who_entered_leaves_once_and_the_places_are_counted() -> None:
    door = Door(places=2)
    a, b = door.admission.enter("a"), door.admission.enter("b")
    with pytest.raises(Problem) as third:
        door.admission.enter("c")
    assert (third.value.code, third.value.refused) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    assert door.admission.refused_total == 0
    with pytest.raises(Problem) as twin:
        door.admission.enter("a")
    assert twin.value.code is grpc.StatusCode.ALREADY_EXISTS
    assert door.admission.oldest_s(a.entered_s + 5) == 5
    door.admission.leave(a)
    door.admission.leave(a)
    assert door.admission.find("a") is None
    assert door.admission.oldest_s(b.entered_s + 5) == 5
    door.admission.enter("a")
    door.admission.leave(a)
    assert door.admission.find("a") is not None, "a guest that left cannot send another away"
    assert door.inside == [1, 2, 1, 2]
    assert door.admission.admitted_total == 3


def test_cutting_counts_who_still_ran() -> None:
    door = Door()
    running, ended = door.admission.enter("a"), door.admission.enter("b")
    running.stream, ended.stream = TokenStream("1"), TokenStream("2")
    ended.stream.cancel()
    assert door.admission.cut("the end") == 1
    assert running.stream.fault is not None
    assert running.stream.fault.kind == "cut"
    assert door.admission.cut_total == 1


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ([], "is empty"),
        ([1] * 79, None),
        ([1] * 80, "has 80 tokens"),
        ([0, 999], None),
        ([0, 1000, 2000], "is 1000; token ids of this model are 0 to 999"),
    ],
)
def test_prompts(prompt: list[int], says: str | None) -> None:
    found = checks.check_prompt(LIMITS, prompt, "ids")
    assert [says in v.description for v in found] == ([True] if says else []) if says else found == []


@pytest.mark.parametrize(
    ("prompt", "wanted", "got"),
    [(10, 5, 5), (10, 70, 70), (10, 71, None), (10, 0, None), (10, -1, None), (10, None, 70), (79, None, 1)],
)
def test_max_tokens(prompt: int, wanted: int | None, got: int | None) -> None:
    value, violations = checks.max_tokens_for(LIMITS, prompt, wanted, "max_tokens")
    assert (value if not violations else None) == got


def test_absent_max_tokens_has_a_bound() -> None:
    wide = checks.ModelLimits(context_length=131072, vocabulary_size=10, kv_max_tokens=10**6)
    assert checks.max_tokens_for(wide, 10, None, "f") == (4096, [])


def test_a_problem_carries_its_details() -> None:
    problem = full("the queue is full", 7)
    trailers = dict(problem.trailers())
    assert trailers["x-moefleet-refused"] == "full"
    packed = trailers["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    status = status_pb2.Status.FromString(packed)
    assert (status.code, status.message) == (8, "the queue is full")
    kinds = [d.type_url.rsplit(".", 1)[-1] for d in status.details]
    assert kinds == ["ErrorInfo", "RetryInfo", "QuotaFailure"]
    retry = error_details_pb2.RetryInfo()
    status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 1
    bad = invalid(Violation("a", "is wrong"), Violation("b", "is too"))
    assert bad.message == "a: is wrong; b: is too"
    assert "x-moefleet-refused" not in dict(bad.trailers())
    assert refusal("wrong-pod", "x").reason == "WRONG_POD"


async def test_a_watcher_misses_no_change_that_came_while_it_was_sending() -> None:
    changes = Changes()
    seen = changes.number
    changes.announce()
    await changes.wait(seen, timeout_s=3600)
    waiting = asyncio.ensure_future(changes.wait(changes.number, timeout_s=3600))
    await asyncio.sleep(0)
    assert not waiting.done()
    changes.announce()
    await waiting
    await changes.wait(changes.number, timeout_s=0.001)
