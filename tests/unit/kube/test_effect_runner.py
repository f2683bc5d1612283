"""Running effects against an API server that is scripted: conflicts, lost connections, and the end of our right to act."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    DeletePod,
    DrainReplica,
    PatchPod,
    ReadLease,
    ReplicaCall,
    WriteLease,
)
from moefleet_operator.core.events import AlreadyExists, Conflict, Key, NotFound, Ok, Outcome, Transient
from moefleet_operator.kube.replicas import outcome_of_code, state_name
from moefleet_operator.kube.runner import KubeRunner
from moefleet_operator.kube.wire import NoAnswerError, NotConnectedError, Request, Response

COMMON: dict[str, Any] = {
    "id": 1,
    "object": Key("team", "chat-0a1b2c3d-0"),
    "reason": "R",
    "message": "m",
    "not_after": 10.0,
}
POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "chat-0a1b2c3d-0", "uid": "u1"}}
CREATE = CreatePod(**COMMON, body=POD)


class Script:
    """Answers in order; an exception is raised."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.sent: list[Request] = []

    async def send(self, request: Request) -> Response:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.at = now

    def now(self) -> float:
        return self.at

    def wall(self) -> float:
        return 1_700_000_000.0

    async def sleep(self, seconds: float) -> None:
        self.at += seconds


class Replicas:
    def __init__(self) -> None:
        self.calls: list[tuple[ReplicaCall, float]] = []

    async def call(self, effect: ReplicaCall, timeout_s: float) -> Outcome:
        self.calls.append((effect, timeout_s))
        return Ok({"state": "DRAINING", "active": 3})


def runner(
    writes: Script, lease: Script | None = None, clock: Clock | None = None, replicas: Replicas | None = None
) -> KubeRunner:
    return KubeRunner(
        writes=writes,
        lease=lease or Script(),
        replicas=replicas or Replicas(),
        clock=clock or Clock(),
        instance="operator-0",
    )


def refused(code: int, reason: str, message: str = "no") -> Response:
    return Response(code, {"reason": reason, "message": message})


async def test_a_created_pod_comes_back_without_its_managed_fields() -> None:
    answer = {**POD, "metadata": {**POD["metadata"], "managedFields": [{"manager": "x"}]}}
    assert await runner(Script(Response(201, answer))).run(CREATE) == Ok(POD)


async def test_a_taken_name_comes_with_what_has_it() -> None:
    script = Script(refused(409, "AlreadyExists"), Response(200, POD))
    assert await runner(script).run(CREATE) == AlreadyExists(POD)
    assert script.sent[1].path == "/api/v1/namespaces/team/pods/chat-0a1b2c3d-0"


async def test_a_taken_name_that_is_free_again() -> None:
    script = Script(refused(409, "AlreadyExists"), refused(404, "NotFound"))
    assert await runner(script).run(CREATE) == AlreadyExists(None)


async def test_a_foreign_service_is_shown_and_not_taken_over() -> None:
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "team", "name": "chat"}}
    effect = Apply(**{**COMMON, "object": Key("team", "chat")}, body=service, create=True)
    script = Script(refused(409, "AlreadyExists"), Response(200, service))
    assert await runner(script).run(effect) == AlreadyExists(service)
    assert script.sent[1].path == "/api/v1/namespaces/team/services/chat"


async def test_deleting_a_uid_that_is_gone_is_not_found_not_conflict() -> None:
    text = "Precondition failed: UID in precondition: u1, UID in object meta: u2"
    effect = DeletePod(**COMMON, uid="u1", grace_s=5)
    assert isinstance(await runner(Script(refused(409, "Conflict", text))).run(effect), NotFound)
    assert isinstance(await runner(Script(refused(404, "NotFound"))).run(effect), NotFound)
    assert isinstance(await runner(Script(refused(409, "Conflict", "busy"))).run(effect), Conflict)


async def test_a_patch_for_another_uid_is_a_conflict() -> None:
    text = "Precondition failed: UID in precondition: u1, UID in object meta: u2"
    effect = PatchPod(**COMMON, uid="u1", body={})
    assert isinstance(await runner(Script(refused(409, "Conflict", text))).run(effect), Conflict)


async def test_a_connection_that_could_not_be_made_is_tried_once_more() -> None:
    script = Script(NotConnectedError("refused"), Response(201, POD))
    assert await runner(script).run(CREATE) == Ok(POD)
    script = Script(NotConnectedError("refused"), NotConnectedError("refused"))
    assert await runner(script).run(CREATE) == Transient("refused", maybe_done=False)


async def test_a_write_without_an_answer_is_not_repeated_here() -> None:
    script = Script(NoAnswerError("lost"))
    assert await runner(script).run(CREATE) == Transient("lost")
    assert len(script.sent) == 1


async def test_nothing_starts_after_the_end_of_the_right_to_act() -> None:
    script = Script()
    outcome = await runner(script, clock=Clock(now=10.5)).run(CREATE)
    assert isinstance(outcome, Transient)
    assert "0.5 s past" in outcome.message
    assert script.sent == []


async def test_nothing_goes_on_after_the_end_of_the_right_to_act() -> None:
    class Silent:
        async def send(self, request: Request) -> Response:
            await asyncio.Event().wait()
            raise AssertionError

    silent = Silent()
    runs = KubeRunner(writes=silent, lease=silent, replicas=Replicas(), clock=Clock(now=9.99), instance="o")
    outcome = await runs.run(CREATE)
    assert isinstance(outcome, Transient)
    assert "before the end of the right to act" in outcome.message


async def test_the_lease_has_a_session_of_its_own() -> None:
    writes, lease = Script(), Script(Response(200, {"kind": "Lease"}), refused(409, "AlreadyExists"))
    runs = runner(writes, lease)
    assert await runs.run(ReadLease(**COMMON)) == Ok({"kind": "Lease"})
    taken = await runs.run(WriteLease(**COMMON, intent="acquire", body={"metadata": {}}))
    assert isinstance(taken, Conflict | AlreadyExists)
    assert writes.sent == []


@pytest.mark.parametrize(("now", "timeout_s"), [(0.0, 2.0), (9.0, 1.0)])
async def test_a_replica_is_called_for_two_seconds_at_most(now: float, timeout_s: float) -> None:
    replicas = Replicas()
    effect = DrainReplica(**COMMON, uid="u1", address="10.0.0.1:8501", token="t", drain_reason="Rollout")
    outcome = await runner(Script(), clock=Clock(now), replicas=replicas).run(effect)
    assert outcome == Ok({"state": "DRAINING", "active": 3})
    assert replicas.calls == [(effect, timeout_s)]


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("UNAUTHENTICATED", "Forbidden"),
        ("PERMISSION_DENIED", "Forbidden"),
        ("FAILED_PRECONDITION", "Invalid"),
        ("INVALID_ARGUMENT", "Invalid"),
        ("NOT_FOUND", "NotFound"),
        ("UNAVAILABLE", "Transient"),
        ("DEADLINE_EXCEEDED", "Transient"),
        ("UNIMPLEMENTED", "Transient"),
    ],
)
def test_what_a_replica_answers(code: str, name: str) -> None:
    decide: Callable[[Any, str], Outcome] = outcome_of_code
    outcome = decide(grpc.StatusCode[code], "10.0.0.1:8501: no")
    assert type(outcome).__name__ == name
    assert getattr(outcome, "message", "") == f"{code}: 10.0.0.1:8501: no"


@pytest.mark.parametrize(
    ("number", "name"), [(0, "UNSPECIFIED"), (4, "SERVING"), (6, "DRAINED"), (99, "UNSPECIFIED")]
)
def test_states_by_their_names(number: int, name: str) -> None:
    assert state_name(number) == name
