"""Revisions that are kept, and room that a quota leaves: tables over pure functions."""

from __future__ import annotations

from typing import Any

import pytest
from moefleet_operator.planning.history import changes, history_of, keep, last_good, restored, verdict_of
from moefleet_operator.planning.observed import Capacity
from moefleet_operator.planning.quotas import within_quotas
from moefleet_operator.planning.revisions import Opinion, PastRevision
from moefleet_operator.planning.steps import ForgetRevision, RecordRevision
from moefleet_operator.rendering.revision import revision
from moefleet_testing.builders import a_resource

SPEC = {
    "model": {"name": "m", "source": "file:///m"},
    "engine": {"image": "i"},
    "scaling": {"maxReplicas": 3},
}


def past(name: str, number: int, verdict: Any = "good") -> PastRevision:
    return PastRevision(
        f"chat-{name}", f"uid-{name}", name, number, verdict, spec={"engine": {"image": name}}
    )


A, B, C = past("aaaaaaaa", 1), past("bbbbbbbb", 2, "refused"), past("cccccccc", 3, "")


@pytest.mark.parametrize(
    ("revision", "expected"),
    [("aaaaaaaa", "good"), ("bbbbbbbb", ""), ("cccccccc", ""), ("dddddddd", "")],
)
def test_a_refusal_counts_while_it_is_the_newest(revision: str, expected: str) -> None:
    assert verdict_of((A, B, C), revision) == expected
    assert verdict_of((A, B), "bbbbbbbb") == "refused"


def test_the_last_good_one_is_another_than_the_wanted_one_and_can_be_read() -> None:
    unreadable = PastRevision("chat-e", "u", "eeeeeeee", 9, "good")
    assert last_good((A, B, C, past("dddddddd", 4), unreadable), "dddddddd") == A
    assert last_good((B, C), None) is None


@pytest.mark.parametrize(
    ("history", "current", "verdict", "expected"),
    [
        ((), "aaaaaaaa", "", ("create", 1, None)),
        ((A,), "aaaaaaaa", "good", None),
        ((A,), "bbbbbbbb", "", ("create", 2, None)),
        ((A, B), "aaaaaaaa", "good", ("patch", 3, "good")),
        ((A, C), "cccccccc", "good", ("patch", 3, "good")),
        ((A, C), "cccccccc", "refused", ("patch", 3, "refused")),
        ((A, B, C), "bbbbbbbb", "", ("patch", 4, None)),
    ],
)
def test_what_is_written(
    history: tuple[PastRevision, ...], current: str, verdict: Any, expected: Any
) -> None:
    found = Opinion(verdict, "CanaryErrors" if verdict == "refused" else "", "4 of 5 failed")
    steps = keep(history, a_resource(), SPEC, current, found, in_use=frozenset())
    if expected is None:
        assert steps == []
        return
    (step,) = steps
    assert isinstance(step, RecordRevision)
    labels = step.body["metadata"]["labels"]
    said = ("patch" if step.uid else "create", step.body["revision"], labels.get("moefleet.io/verdict"))
    assert said == expected
    if step.uid:
        assert "data" not in step.body, "it can never be written again"
        assert labels["moefleet.io/verdict-reason"] == ("CanaryErrors" if verdict == "refused" else None)
    else:
        assert step.body["data"]["spec"] == {"model": SPEC["model"], "engine": SPEC["engine"]}


def test_ten_are_kept_the_oldest_go_and_never_what_is_in_use() -> None:
    many = tuple(past(f"{n:08x}", n) for n in range(1, 13))
    steps = keep(many, a_resource(), SPEC, "0000000c", Opinion("good"), in_use=frozenset({"00000001"}))
    assert [s.name for s in steps if isinstance(s, ForgetRevision)] == ["chat-00000002", "chat-00000003"]


def test_what_is_kept_renders_to_the_same_revision_with_everything_else_as_it_is_now() -> None:
    raw = {
        "metadata": {"name": "chat", "namespace": "n", "uid": "u"},
        "spec": {
            **SPEC,
            "engine": {"type": "Simulated", "image": "new", "args": {"speed": 2}},
            "replica": {"gpus": 4},
        },
    }
    was = {"model": SPEC["model"], "engine": {"type": "Simulated", "image": "old"}}
    again = restored(raw, PastRevision("chat-x", "u", "x", 1, "good", spec=was))
    assert (again.spec.engine.image, again.spec.engine.args, again.spec.replica.gpus) == ("old", {}, 8)
    assert again.spec.scaling.max_replicas == 3
    assert revision(again.spec) == revision(a_resource(**was, replica={}).spec)


@pytest.mark.parametrize("change", [
    {"scaling": {"minReplicas": 2, "maxReplicas": 9}}, {"limits": {"queuedRequests": 5}}, {"pricing": {"gpuHourCost": "3"}},
    {"rollout": {"strategy": "InPlace", "canary": {"window": "5m"}}},
])  # fmt: skip
def test_46_what_changes_no_pod_is_no_new_revision(change: dict[str, Any]) -> None:
    assert revision(a_resource(**change).spec) == revision(a_resource().spec)
    assert revision(a_resource(engine={"type": "Simulated", "image": "runtime:2"}).spec) != revision(
        a_resource().spec
    )


def test_what_is_not_ours_or_not_understood_is_left_out() -> None:
    owned = {"ownerReferences": [{"uid": "u", "controller": True}], "labels": {"moefleet.io/revision": "a"}}
    found = [
        {"metadata": {**owned, "name": "second"}, "revision": 2, "data": None},
        {"metadata": {**owned, "name": "first"}, "revision": 1, "data": {"spec": {"engine": {}}}},
        {"metadata": {**owned, "labels": {}, "name": "no label"}, "revision": 3},
        {"metadata": {**owned, "name": "no number"}},
        {"metadata": {**owned, "ownerReferences": [], "name": "nobody's"}, "revision": 4},
    ]
    assert [(r.name, r.spec) for r in history_of(found, "u")] == [("first", {"engine": {}}), ("second", {})]


def test_a_merge_patch_makes_the_one_into_the_other() -> None:
    before = {"a": {"b": 1, "c": {"d": 2}}, "e": [1], "f": None}
    after = {"a": {"b": 1, "c": 5}, "e": [1, 2], "g": 0}
    assert changes(before, after) == {"f": None, "a": {"c": 5}, "e": [1, 2], "g": 0}
    assert changes(after, after) == {}


# --- quotas ------------------------------------------------------------------------------------------------------------


def quota(
    name: str = "q", hard: dict[str, str] | None = None, used: dict[str, str] | None = None, **spec: Any
) -> Any:
    return {"metadata": {"name": name}, "spec": spec, "status": {"hard": hard or {}, "used": used or {}}}


GPU = "requests.nvidia.com/gpu"
POD = {"nvidia.com/gpu": 8_000, "cpu": 4_000, "pods": 1_000}


@pytest.mark.parametrize(
    ("story", "quotas", "nodes", "creating", "expected"),
    [
        ("none", [], 5, 0, (5, "")),
        ("GPUs", [quota(hard={GPU: "32"}, used={GPU: "8"})], 5, 0, (3, "q")),
        ("the nodes have less", [quota(hard={GPU: "32"}, used={GPU: "8"})], 2, 0, (2, "")),
        ("part of a replica is none", [quota(hard={GPU: "15"}, used={GPU: "0"})], 5, 0, (1, "q")),
        ("spent and more", [quota(hard={GPU: "8"}, used={GPU: "16"})], 5, 0, (0, "q")),
        ("what is under way", [quota(hard={GPU: "32"}, used={GPU: "0"})], 5, 3, (1, "q")),
        ("nodes unknown, quota known", [quota(hard={GPU: "16"})], None, 0, (2, "q")),
        ("nothing of ours", [quota(hard={"services": "1"})], None, 0, (None, "")),
        ("the tightest of two", [quota("a", {GPU: "32"}), quota("b", {"count/pods": "3"}, {"count/pods": "2"})], 9, 0, (1, "b")),
        ("plain cpu", [quota(hard={"cpu": "10"}, used={"cpu": "1"})], 9, 0, (2, "q")),
        ("scopes are the API server's to judge", [quota(hard={GPU: "0"}, scopes=["BestEffort"])], 5, 0, (5, "")),
    ],
)  # fmt: skip
def test_quota(story: str, quotas: list[Any], nodes: int | None, creating: int, expected: Any) -> None:
    found = within_quotas(Capacity(nodes, 9, 9), POD, quotas, creating)
    assert (found.fits, found.quota) == expected, story
