"""LISTs and access reviews: pages, patience, and when patience ends."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.kube.access import Right, may_watch, missing_rights, rights_needed
from moefleet_operator.kube.reads import RefusedError, UnreachableError, pages, read
from moefleet_operator.kube.resources import NODES, PODS, SERVICES
from moefleet_operator.kube.wire import NoAnswerError, Request, Response


class Clock:
    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        return 0.0

    def wall(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


class Script:
    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.sent: list[Request] = []

    async def send(self, request: Request) -> Response:
        self.sent.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


GET = Request(verb="GET", path="/api/v1/nodes", timeout_s=1.0)
BUSY = Response(429, {"message": "slow down"}, 3.0)


async def test_a_busy_server_is_asked_again_when_it_said() -> None:
    clock, script = Clock(), Script(BUSY, Response(503, {}), NoAnswerError("lost"), Response(200, {"a": 1}))
    assert (await read(script, clock, GET)).body == {"a": 1}
    assert clock.slept == [3.0, 0.4, 0.8]


async def test_patience_ends() -> None:
    clock, script = Clock(), Script(*[Response(500, {"message": "etcd is away"})] * 5)
    with pytest.raises(UnreachableError, match="5 attempts failed, the last with: 500: etcd is away"):
        await read(script, clock, GET)
    assert clock.slept == [0.2, 0.4, 0.8, 1.6]


async def test_a_refusal_is_not_repeated() -> None:
    script = Script(Response(403, {"reason": "Forbidden", "message": "no"}))
    with pytest.raises(RefusedError) as caught:
        await read(script, Clock(), GET)
    assert caught.value.status == 403
    assert len(script.sent) == 1


def page(names: list[str], token: str = "") -> Response:
    metadata: dict[str, Any] = {"resourceVersion": "42", **({"continue": token} if token else {})}
    items = [{"metadata": {"name": name, "managedFields": []}} for name in names]
    return Response(200, {"metadata": metadata, "items": items})


async def test_a_list_is_read_to_its_last_page_and_items_know_their_kind() -> None:
    script = Script(page(["a", "b"], "next"), page(["c"]))
    found = [p async for p in pages(script, Clock(), PODS, "team", "a=b")]
    assert [item["metadata"]["name"] for p in found for item in p.items] == ["a", "b", "c"]
    assert found[0].items[0] == {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    assert {p.resource_version for p in found} == {42}
    assert [dict(r.query).get("continue") for r in script.sent] == [None, "next"]
    assert {dict(r.query)["labelSelector"] for r in script.sent} == {"a=b"}
    assert script.sent[0].path == "/api/v1/namespaces/team/pods"


class Reviewer:
    """Allows everything but these."""

    def __init__(self, *denied: str) -> None:
        self.denied = denied
        self.asked: list[dict[str, str]] = []

    async def send(self, request: Request) -> Response:
        assert request.body is not None
        attributes = request.body["spec"]["resourceAttributes"]
        self.asked.append(attributes)
        word = f"{attributes['verb']} {attributes['resource']}"
        return Response(201, {"status": {"allowed": word not in self.denied}})


async def test_missing_rights_are_named() -> None:
    missing = await missing_rights(
        Reviewer("list nodes", "patch services"), Clock(), rights_needed(("team",), "ops", "lease")
    )
    assert [str(right) for right in missing] == ["patch services in namespace team", "list nodes"]


async def test_roles_may_be_narrowed_to_the_name_of_the_lease() -> None:
    reviewer = Reviewer()
    await missing_rights(reviewer, Clock(), rights_needed((), "ops", "moefleet-operator"))
    leases = {a["verb"]: a.get("name") for a in reviewer.asked if a["resource"] == "leases"}
    assert leases == {"create": None, "get": "moefleet-operator", "update": "moefleet-operator"}
    assert all("namespace" not in a for a in reviewer.asked if a["resource"] == "moefleets")


@pytest.mark.parametrize(
    ("resource", "namespaces", "missing", "may"),
    [
        (PODS, ("",), (), True),
        (PODS, ("a", "b"), (Right("watch", "", "pods", namespace="b"),), False),
        (PODS, ("a",), (Right("watch", "", "pods", namespace="b"),), True),
        (PODS, ("a",), (Right("create", "", "pods", namespace="a"),), True),
        (PODS, ("a",), (Right("list", "", "pods", "log", "a"),), True),
        (NODES, ("",), (Right("list", "", "nodes"),), False),
        (SERVICES, ("",), (Right("list", "", "nodes"),), True),
    ],
)
def test_what_may_be_watched(resource: Any, namespaces: Any, missing: Any, may: bool) -> None:
    assert may_watch(resource, namespaces, missing) is may
