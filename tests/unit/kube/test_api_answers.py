"""What the API server answers, and what the core is told."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.core.events import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Ok,
    Transient,
)
from moefleet_operator.kube.outcomes import is_other_uid, outcome_of, retry_after_s
from moefleet_operator.kube.wire import Response


def status(code: int, reason: str = "", message: str = "no") -> Response:
    return Response(code, {"kind": "Status", "reason": reason, "message": message})


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (Response(200, {"kind": "Pod"}), Ok),
        (Response(201, {"kind": "Pod"}), Ok),
        (status(400, "BadRequest"), Invalid),
        (status(401, "Unauthorized"), Forbidden),
        (status(403, "Forbidden", 'pods is forbidden: User "x" cannot create resource "pods"'), Forbidden),
        (status(403, "Forbidden", 'pods "a" is forbidden: exceeded quota: gpus, requested: 8'), Forbidden),
        (
            status(403, "Forbidden", 'pods "a" is forbidden: violates PodSecurity "restricted:latest"'),
            Invalid,
        ),
        (status(403, "Forbidden", 'admission webhook "w.example" denied the request: no'), Invalid),
        (
            status(403, "Forbidden", "ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"),
            Invalid,
        ),
        (status(403, "Forbidden", "error looking up service account a/default: not found"), Transient),
        (status(404, "NotFound"), NotFound),
        (status(408, "Timeout"), Transient),
        (status(409, "AlreadyExists"), AlreadyExists),
        (status(409, "Conflict"), Conflict),
        (status(413, "RequestEntityTooLarge"), Invalid),
        (status(415, "UnsupportedMediaType"), Invalid),
        (status(422, "Invalid"), Invalid),
        (status(429, "TooManyRequests"), Transient),
        (status(500, "InternalError"), Transient),
        (status(503, "ServiceUnavailable"), Transient),
        (status(504, "Timeout"), Transient),
        # A proxy in between that knows nothing of Kubernetes.
        (Response(302, {"message": "<html>login</html>"}), Transient),
    ],
)
def test_each_answer_is_one_outcome(response: Response, outcome: type[Any]) -> None:
    assert type(outcome_of(response)) is outcome


def test_a_namespace_that_ends_is_told_from_a_missing_right() -> None:
    said = "unable to create new content in namespace models because it is being terminated"
    body = {
        "kind": "Status",
        "reason": "Forbidden",
        "message": f'pods "chat-0" is forbidden: {said}',
        "details": {
            "causes": [
                {
                    "reason": "NamespaceTerminating",
                    "message": "namespace models is being terminated",
                    "field": "metadata.namespace",
                }
            ]
        },
    }
    ends = outcome_of(Response(403, body))
    assert isinstance(ends, Forbidden)
    assert ends.namespace_ends
    without = outcome_of(Response(403, {**body, "details": {"causes": [{"reason": "FieldValueInvalid"}]}}))
    assert isinstance(without, Forbidden)
    assert not without.namespace_ends


def test_the_message_keeps_code_reason_and_text() -> None:
    answer = outcome_of(status(422, "Invalid", "spec.foo: is not"))
    assert answer == Invalid("422 Invalid: spec.foo: is not")


def test_a_long_message_is_cut_and_says_so() -> None:
    answer = outcome_of(status(422, "Invalid", "x" * 5000))
    assert isinstance(answer, Invalid)
    assert len(answer.message) == 500
    assert answer.message.endswith("…")


@pytest.mark.parametrize(
    ("header", "body", "wanted"),
    [
        (None, {}, None),
        ("2", {}, 2.0),
        ("0", {}, None),
        ("soon", {}, None),
        (None, {"details": {"retryAfterSeconds": 3}}, 3.0),
        ("1", {"details": {"retryAfterSeconds": 3}}, 1.0),
        # Nobody makes the operator wait for an hour.
        ("3600", {}, 30.0),
    ],
)
def test_retry_after(header: str | None, body: dict[str, Any], wanted: float | None) -> None:
    assert retry_after_s(header, body) == wanted


def test_a_busy_server_says_when_to_come_back() -> None:
    busy = outcome_of(Response(429, {"message": "slow down"}, 7.0))
    assert busy == Transient("429: slow down", 7.0, maybe_done=False)
    # That one may have been carried out before its answer was lost.
    away = outcome_of(Response(504, {"message": "gateway timeout"}))
    assert away == Transient("504: gateway timeout", maybe_done=True)


@pytest.mark.parametrize(
    ("message", "other"),
    [
        ("Precondition failed: UID in precondition: a, UID in object meta: b", True),
        (
            "the UID in the precondition (a) does not match the UID in record (b). The object might have been deleted and "
            "then recreated",
            True,
        ),
        ("the object has been modified; please apply your changes to the latest version", False),
    ],
)
def test_another_uid_under_the_name_is_told_from_other_conflicts(message: str, other: bool) -> None:
    assert is_other_uid(outcome_of(status(409, "Conflict", message))) is other
