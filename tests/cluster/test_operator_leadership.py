"""Two operators, one Lease: a leader that is killed, one that is asked to go, and one that has nothing to do."""

from __future__ import annotations

import time
from collections import Counter

from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import Bench, bench, crd, revisions

__all__ = ["bench", "crd"]

# Long enough for ten renewals, three scaling ticks and the 5 s beat of every stream.
QUIET_S = 20.0


def test_the_leader_is_killed_in_a_rollout_and_the_standby_goes_on_without_doing_anything_twice(
    bench: Bench,
) -> None:
    first = bench.leader()
    standby = bench.operator()
    standby.wait("it stands by", standby.ready)
    assert not standby.leads()
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=3, maximum=4))
    bench.wait("three ready", lambda: len(bench.ready_pods("chat")) == 3)
    old = revisions(bench.pods("chat")).pop()
    for name in bench.ready_pods("chat"):
        bench.world.set_active(name, 1)
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=3, maximum=4, speed=0.5))
    bench.wait("one drains", lambda: any(r.drains for r in bench.world.replicas.values()))
    first.kill()

    bench.wait("the standby leads", standby.leads)
    for replica in list(bench.world.replicas.values()):
        bench.world.set_active(replica.name, 0)
    bench.wait(
        "the new revision serves",
        lambda: old not in revisions(bench.pods("chat")) and len(bench.ready_pods("chat")) == 3,
    )
    pods = [w for w in bench.writes() if w.resource == "pods" and not w.subresource]
    created = Counter(w.name for w in pods if w.verb == "create" and w.code == 201)
    deleted = Counter(w.name for w in pods if w.verb == "delete" and w.code == 200)
    assert len(created) >= 6
    assert set(created.values()) == {1}, created
    assert set(deleted.values()) == {1}, deleted
    assert len(bench.pods("chat")) == 3
    assert standby.leads()


def test_sigterm_gives_the_lease_back_and_the_standby_leads_at_once(bench: Bench) -> None:
    first = bench.leader()
    standby = bench.operator()
    standby.wait("it stands by", standby.ready)
    assert first.stop() == 0
    holder = bench.kubectl.json("get", "lease", "moefleet-operator")["spec"].get("holderIdentity")
    assert holder in ("", None, standby.name)
    # Far below the 15 s of a Lease that has to run out: that would need three of its renewals.
    bench.wait("the standby leads", standby.leads, limit_s=10.0)
    assert first.said("ReleaseLease")


def test_nothing_is_written_when_nothing_changes(bench: Bench) -> None:
    leader = bench.leader()
    bench.kubectl.apply(fleet("chat", bench.namespace, minimum=2), fleet("code", bench.namespace, minimum=1))
    for name in ("chat", "code"):
        bench.wait("Ready", lambda name=name: bench.condition(name, "Ready")[0] == "True")  # type: ignore[misc]
        # The last thing that changes is written with the numbers, at most every 30 s.
        bench.wait("numbers", lambda name=name: "coldStart" in bench.fleet(name)["status"])  # type: ignore[misc]
        bench.wait("settled", lambda name=name: bench.condition(name, "Reconciling")[0] == "False")  # type: ignore[misc]
    before, lines = len(bench.writes()), len(leader.lines())
    time.sleep(QUIET_S)
    assert bench.writes()[before:] == []
    assert leader.lines()[lines:] == []
    assert leader.get("/healthz") == (200, "ok\n")
    # The target of the issue for 1,000 replicas is 250 MiB; a handful must stay far below.
    assert leader.resident_mib() < 200
