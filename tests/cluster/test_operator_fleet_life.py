"""A fleet's life with the real operator and a real API server: made, scaled, changed, refused, gone."""

from __future__ import annotations

import time

from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import Bench, bench, crd, revisions

__all__ = ["bench", "crd"]


def test_a_fleet_becomes_pods_a_service_and_a_budget(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=2))
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")

    pods = bench.pods("chat")
    revision = revisions(pods).pop()
    assert sorted(p["metadata"]["name"] for p in pods) == [f"chat-{revision}-0", f"chat-{revision}-1"]
    owner = bench.fleet("chat")["metadata"]["uid"]
    for pod in pods:
        assert [(o["uid"], o["controller"]) for o in pod["metadata"]["ownerReferences"]] == [(owner, True)]
        assert not pod["metadata"].get("finalizers")
        assert not any("kopf" in key or "moefleet.io" in key for key in pod["metadata"]["annotations"])
        gates = {c["type"]: c["status"] for c in pod["status"]["conditions"]}
        assert gates["moefleet.io/gateway-registered"] == "True"
    service = bench.kubectl.json("get", "service", "chat")
    assert service["spec"]["selector"] == {"moefleet.io/fleet": "chat", "moefleet.io/active": "true"}
    budget = bench.kubectl.json("get", "pdb", "chat")
    assert budget["spec"]["minAvailable"] == 1
    status = bench.fleet("chat")["status"]
    assert (status["replicas"], status["readyReplicas"], status["desiredReplicas"]) == (2, 2, 2)
    assert (status["revision"], status["observedGeneration"]) == (revision, 1)
    assert bench.fleet("chat")["metadata"].get("annotations") is None
    # The credential of this very fleet was taken: nobody was turned away.
    assert all(replica.refused_calls == 0 for replica in bench.world.replicas.values())
    managers = {m["manager"] for m in service["metadata"].get("managedFields", [])}
    assert managers <= {"moefleet-operator"}
    events = bench.kubectl.json("get", "events.events.k8s.io")["items"]
    assert any(e["regarding"]["uid"] == owner and e["reason"] == "ScalingUp" for e in events)


def test_a_child_that_somebody_deletes_comes_back(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace))
    bench.wait("Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    uid = bench.pods("chat")[0]["metadata"]["uid"]
    bench.kubectl("delete", "service,pdb,pod", "-l", "moefleet.io/fleet=chat", "--wait=false")

    def healed() -> bool:
        pods = bench.pods("chat")
        return (
            len(bench.kubectl.json("get", "service,pdb", "-l", "moefleet.io/fleet=chat")["items"]) == 2
            and bool(bench.ready_pods("chat"))
            and pods[0]["metadata"]["uid"] != uid
        )

    bench.wait("all there again", healed)


def test_kubectl_scale_drains_before_it_deletes_and_takes_draining_replicas_back(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace, mode="External", replicas=2))
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)
    for name in bench.ready_pods("chat"):
        bench.world.set_active(name, 3)

    bench.kubectl("scale", "moefleet", "chat", "--replicas=1")
    drained = lambda: [r for r in bench.world.replicas.values() if r.drains]  # noqa: E731
    bench.wait("one was asked to drain", drained)
    victim = drained()[0]
    assert victim.drains == ["ScaleDown"]
    bench.wait("one replica counts", lambda: bench.fleet("chat")["status"]["replicas"] == 1)
    # Streams run in it, so it stays.
    assert {p["metadata"]["name"] for p in bench.pods("chat")} >= {victim.name}

    bench.kubectl("scale", "moefleet", "chat", "--replicas=2")
    bench.wait("it was taken back", lambda: victim.resumes and victim.name in bench.ready_pods("chat"))
    assert len(bench.world.seen) == 2, f"a cold replica was made: {bench.world.seen}"

    bench.kubectl("scale", "moefleet", "chat", "--replicas=1")
    bench.wait(
        "one drains again", lambda: len([r for r in bench.world.replicas.values() if r.state >= 5]) == 1
    )
    victim = next(r for r in bench.world.replicas.values() if r.state >= 5)
    bench.world.set_active(victim.name, 0)
    bench.wait(
        "it is gone",
        lambda: [p["metadata"]["name"] for p in bench.pods("chat")] != [] and len(bench.pods("chat")) == 1,
    )
    assert bench.pods("chat")[0]["metadata"]["name"] != victim.name


def test_a_taken_model_name_waits_for_its_owner_to_go(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("first", bench.namespace, model="deepseek"))
    bench.wait("Ready", lambda: bench.condition("first", "Ready")[0] == "True")
    # creationTimestamp has whole seconds; the older one keeps the name.
    time.sleep(1.1)
    bench.kubectl.apply(fleet("second", bench.namespace, model="deepseek"))
    bench.wait("refused", lambda: bench.condition("second", "Ready") == ("False", "ModelNameTaken"))
    assert bench.pods("second") == []
    assert bench.condition("first", "Ready")[0] == "True"

    bench.kubectl("delete", "moefleet", "first")
    bench.wait("it has the name now", lambda: bench.condition("second", "Ready")[0] == "True")


def test_a_changed_spec_rolls_one_replica_at_a_time_with_drain(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=2, maximum=3))
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)
    old = revisions(bench.pods("chat")).pop()
    for name in bench.ready_pods("chat"):
        bench.world.set_active(name, 1)
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=2, maximum=3, speed=0.5))

    least = 2

    def rolled() -> bool:
        nonlocal least
        pods = bench.pods("chat")
        least = min(least, len(bench.ready_pods("chat")))
        for replica in list(bench.world.replicas.values()):
            if replica.drains and replica.active:
                assert replica.uid in {p["metadata"]["uid"] for p in pods}, "deleted with a stream in it"
                bench.world.set_active(replica.name, 0)
        return old not in revisions(pods) and len(bench.ready_pods("chat")) == 2

    bench.wait("the new revision serves", rolled)
    assert least >= 1
    by_revision = [r for r in bench.world.replicas.values() if old in r.name]
    assert [r.drains[0] for r in by_revision] == ["Rollout", "Rollout"]
    bench.wait("it says so", lambda: bench.condition("chat", "Progressing")[0] == "False")


def test_more_gpus_than_any_node_has_is_said_and_hurts_nobody_else(bench: Bench) -> None:
    # The whole cluster is watched, so free GPUs are known.
    bench.leader(watch_namespaces=())
    bench.kubectl.apply(fleet("chat", bench.namespace), fleet("huge", bench.namespace, gpus=16))
    bench.wait("the other is Ready", lambda: bench.condition("chat", "Ready")[0] == "True")
    bench.wait("it is said", lambda: bench.condition("huge", "CapacityLimited")[0] == "True")
    assert bench.condition("huge", "Ready")[0] == "False"


def test_a_deleted_fleet_leaves_nothing(bench: Bench) -> None:
    bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=2))
    bench.wait("two ready", lambda: len(bench.ready_pods("chat")) == 2)
    bench.kubectl("delete", "moefleet", "chat")
    selector = ("-l", "moefleet.io/fleet=chat")
    bench.wait(
        "nothing is left", lambda: not bench.kubectl.json("get", "pods,services,pdb", *selector)["items"]
    )
    created = [w for w in bench.writes() if w.resource == "pods" and w.verb == "create" and w.code == 201]
    assert len(created) == 2
