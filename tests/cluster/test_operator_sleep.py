"""A fleet that nobody calls: asleep on a real API server, left alone by a new leader, woken once by the first request."""

from __future__ import annotations

import time

from moefleet_operator_rig import fleet
from moefleet_operator_rig.fixtures import Bench, bench, crd

__all__ = ["bench", "crd"]

# A new leader decides every 5 s, and each new replica would show within a tenth of a second.
LOOKED_FOR_S = 12.0


def test_it_sleeps_stays_asleep_under_a_new_leader_and_one_call_wakes_it_once(bench: Bench) -> None:
    first = bench.leader()
    called = bench.world.called
    key = (bench.namespace, "chat")
    called[key] = (0, 0)
    wanted = fleet("chat", bench.namespace, mode="Automatic", minimum=1, maximum=3)
    wanted["spec"]["scaling"]["idle"] = {"scaleToZeroAfter": "5s"}
    bench.kubectl.apply(wanted)
    bench.wait("it serves", lambda: len(bench.ready_pods("chat")) == 1)
    bench.wait("it sleeps", lambda: bench.condition("chat", "Available") == ("False", "Asleep"), 150)
    bench.wait("nothing is left", lambda: not bench.pods("chat"))
    status = bench.fleet("chat")["status"]
    assert bench.condition("chat", "Ready") == ("True", "Asleep")
    assert (status["desiredReplicas"], status["scaling"]["lastDecision"]["reason"]) == (0, "Idle")

    first.kill()
    bench.leader()
    end = time.monotonic() + LOOKED_FOR_S
    while time.monotonic() < end:
        assert len(bench.world.seen) == 1, "the new leader woke it"
        time.sleep(0.2)
    # What the dead one measured is still there for the gateways.
    assert bench.fleet("chat")["status"]["coldStart"] == status["coldStart"]

    called[key] = (3, 3)
    bench.wait("it wakes", lambda: bench.condition("chat", "Progressing") == ("True", "Waking"))
    bench.wait("it serves", lambda: len(bench.ready_pods("chat")) == 1)
    called[key] = (3, 0)
    assert len(bench.world.seen) == 2, f"made more than once: {bench.world.seen}"
    assert bench.fleet("chat")["status"]["desiredReplicas"] == 1
