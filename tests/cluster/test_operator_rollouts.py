"""Revisions with the real operator and a real API server: kept, compared, refused, undone by hand, forgotten."""

from __future__ import annotations

import json
from typing import Any

import pytest
from moefleet_cli.app import run
from moefleet_cli.exits import Exit
from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import Bench, bench, crd, revisions

__all__ = ["bench", "crd"]


def kept(bench: Bench) -> dict[str, dict[str, Any]]:
    """Revision -> its ControllerRevision."""
    found = bench.kubectl.json("get", "controllerrevisions", "-l", "moefleet.io/fleet=chat")["items"]
    return {r["metadata"]["labels"]["moefleet.io/revision"]: r for r in found}


def verdict(bench: Bench, revision: str) -> str:
    found = kept(bench).get(revision, {"metadata": {"labels": {}}})
    return str(found["metadata"]["labels"].get("moefleet.io/verdict", ""))


def message(bench: Bench, kind: str) -> str:
    conditions = bench.fleet("chat")["status"]["conditions"]
    return str(next(c["message"] for c in conditions if c["type"] == kind))


def test_a_revision_whose_canary_fails_requests_is_refused_and_a_person_undoes_it(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.leader()
    made = fleet("chat", bench.namespace, mode="External", replicas=2, canary="20s")
    # The API server compares a revision's data byte by byte: what JSON may write in two ways must come back as it was.
    odd = {"zz": "1 < 2 & \u00e9", "aa": "\u2028/", "mm": "1.0"}
    made["spec"]["replica"]["podTemplate"]["annotations"].update({f"odd.test/{k}": v for k, v in odd.items()})
    bench.kubectl.apply(made)
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)
    good = revisions(bench.pods("chat")).pop()
    bench.wait("it proved itself", lambda: verdict(bench, good) == "good")
    entry = kept(bench)[good]
    assert entry["data"]["spec"]["engine"]["args"] == {"speed": 1}
    owner = bench.fleet("chat")["metadata"]["uid"]
    assert [(o["uid"], o["controller"]) for o in entry["metadata"]["ownerReferences"]] == [(owner, True)]

    made["spec"]["engine"]["args"]["speed"] = 0.5
    bench.kubectl.apply(made)
    bench.wait("one of it is ready", lambda: any(good not in name for name in bench.ready_pods("chat")))
    bad = next(name for name in bench.ready_pods("chat") if good not in name).split("-")[1]
    bench.wait("it is compared", lambda: bench.fleet("chat")["status"]["rollout"]["step"] == "Canary")

    def broken() -> bool:
        bench.world.serve_requests(good, 5, 0)
        bench.world.serve_requests(bad, 5, 4)
        return verdict(bench, bad) == "refused"

    bench.wait("it is refused", broken)
    bench.wait("it is gone", lambda: revisions(bench.pods("chat")) == {good})
    bench.wait("it says so", lambda: bench.condition("chat", "RolloutHeld") == ("True", "CanaryErrors"))
    assert "requests failed, before it was 0 of" in message(bench, "RolloutHeld")
    assert bench.condition("chat", "Stalled") == ("True", "CanaryErrors")
    bench.wait(
        "an Event tells it",
        lambda: any(
            e["type"] == "Warning" and e["reason"] == "CanaryErrors"
            for e in bench.kubectl.json("get", "events.events.k8s.io")["items"]
        ),
    )
    assert bench.fleet("chat")["spec"]["engine"]["args"] == {"speed": 0.5}, "the spec is the user's"
    bench.kubectl("scale", "moefleet", "chat", "--replicas=3")
    bench.wait("it grows in the good one", lambda: len(bench.ready_pods("chat")) == 3)
    assert revisions(bench.pods("chat")) == {good}

    before = {p["metadata"]["uid"] for p in bench.pods("chat")}
    where = ["-n", bench.namespace, "--kubeconfig", str(bench.plane.kubeconfig)]
    assert run(["history", "chat", *where, "-o", "json"]) == Exit.OK
    newest, oldest = json.loads(capsys.readouterr().out)
    assert (newest["revision"], newest["verdict"], newest["reason"]) == (bad, "refused", "CanaryErrors")
    assert (oldest["revision"], oldest["verdict"], oldest["wanted"]) == (good, "good", False)
    assert run(["undo", "chat", *where, "--dry-run"]) == Exit.OK
    assert "- spec.engine.args.speed: 0.5\n+ spec.engine.args.speed: 1\n" in capsys.readouterr().out
    assert bench.fleet("chat")["spec"]["engine"]["args"] == {"speed": 0.5}
    assert run(["undo", "chat", *where, "-o", "json"]) == Exit.OK
    document = json.loads(capsys.readouterr().out)
    assert (document["from"], document["to"], document["changed"]) == (bad, good, True)
    bench.wait("it is put right", lambda: bench.condition("chat", "Ready")[0] == "True")
    assert bench.condition("chat", "RolloutHeld") == ("False", "NotHeld")
    assert {p["metadata"]["uid"] for p in bench.pods("chat")} == before, "nobody was restarted for it"
    assert bench.fleet("chat")["spec"]["replicas"] == 3, "what is no part of a revision stays"
    assert run(["undo", "chat", *where, "--to", "77"]) == Exit.USAGE
    assert {w.code for w in bench.writes()} <= {200, 201}

    bench.kubectl("delete", "moefleet", "chat")
    bench.wait("its revisions go with it", lambda: not kept(bench))


def test_ten_revisions_are_kept_and_another_leader_knows_them(bench: Bench) -> None:
    first = bench.leader()
    speeds = [1.0 + n / 10 for n in range(12)]
    for speed in speeds[:6]:
        bench.kubectl.apply(fleet("chat", bench.namespace, speed=speed, canary="0s"))
        generation = bench.fleet("chat")["metadata"]["generation"]
        bench.wait("seen", lambda g=generation: seen(bench, g))  # type: ignore[misc]
    assert first.stop() == 0
    bench.leader()
    for speed in speeds[6:]:
        bench.kubectl.apply(fleet("chat", bench.namespace, speed=speed, canary="0s"))
        generation = bench.fleet("chat")["metadata"]["generation"]
        bench.wait("seen", lambda g=generation: seen(bench, g))  # type: ignore[misc]
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    bench.wait("ten are kept", lambda: len(kept(bench)) == 10)
    # The oldest that none of the replicas stands on goes; which ones those were depends on how fast they were followed.
    revisions = sorted(r["revision"] for r in kept(bench).values())
    assert revisions[-8:] == list(range(5, 13)), revisions


def seen(bench: Bench, generation: int) -> bool:
    return bool(bench.fleet("chat").get("status", {}).get("observedGeneration") == generation)


def test_a_quota_of_the_namespace_is_room_that_is_not_there(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "gpus", "namespace": bench.namespace},
            "spec": {"hard": {"requests.nvidia.com/gpu": "16"}},
        }
    )
    quota = lambda: bench.kubectl.json("get", "resourcequota", "gpus").get("status", {}).get("used")  # noqa: E731
    bench.wait("the quota counts", quota)
    bench.kubectl.apply(fleet("chat", bench.namespace, mode="External", replicas=3))
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)
    bench.wait("it says so", lambda: bench.condition("chat", "CapacityLimited") == ("True", "QuotaExceeded"))
    assert {w.code for w in bench.writes() if w.resource == "pods" and w.verb == "create"} == {201}
    bench.kubectl("patch", "resourcequota", "gpus", "--type=merge", "-p", '{"spec":{"hard":{"requests.nvidia.com/gpu":"24"}}}')  # fmt: skip
    bench.wait("three ready", lambda: len(bench.ready_pods("chat")) == 3)
