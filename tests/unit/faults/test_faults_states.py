"""When a wanted state is reached: each thing that may be missing, and that nothing is said when nothing is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from moefleet_faults.scenario import Wanted
from moefleet_faults.states import View, missing


def pod(
    uid: str, *, ready: bool = True, revision: str = "new", node: str = "node0", restarts: int = 0
) -> dict[str, Any]:
    return {
        "metadata": {"uid": uid, "labels": {"moefleet.io/revision": revision}},
        "spec": {"nodeName": node},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"restartCount": restarts}],
        },
    }


def fleet(**changes: Any) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": "True"}], "observedGeneration": 3, "revision": "new"}
    return {"metadata": {"generation": 3}, "status": {**status, **changes}}


GOOD = View(fleet(), (pod("a"), pod("b")), (pod("gateway"),))
BEFORE = View(fleet(), (pod("x", revision="old"), pod("y", revision="old")), (pod("gateway"),))
TWO = Wanted(replicas=2)


@pytest.mark.parametrize(
    ("wanted", "view", "before", "says"),
    [
        (TWO, GOOD, BEFORE, ""),
        (TWO, replace(GOOD, pods=(pod("a"), pod("b", ready=False))), BEFORE, "1 of 2 ready"),
        (TWO, replace(GOOD, pods=(*GOOD.pods, pod("c", ready=False))), BEFORE, "3 pods, wanted 2"),
        (TWO, replace(GOOD, fleet=fleet(conditions=[])), BEFORE, "the fleet is not Ready"),
        (Wanted(replicas=2, rolled=True), GOOD, BEFORE, ""),
        (Wanted(replicas=2, rolled=True), GOOD, GOOD, "pods of an old revision: ['new']"),
        (Wanted(replicas=2, rolled=True), replace(GOOD, pods=(pod("a"), pod("b", revision="newer"))), BEFORE, "2 revisions"),
        (Wanted(replicas=2, settled=True), GOOD, BEFORE, ""),
        (Wanted(replicas=2, settled=True), replace(GOOD, fleet=fleet(observedGeneration=2)), BEFORE, "not seen the newest spec"),
        (Wanted(replicas=2, settled=True), replace(GOOD, fleet=fleet(revision="newer")), BEFORE, "status.revision newer"),
        # A kill that nobody has seen yet looks like a state that was reached.
        (Wanted(replicas=2, restarted=True), GOOD, GOOD, "nothing has begun again"),
        (Wanted(replicas=2, restarted=True), replace(GOOD, system=(pod("gateway", restarts=1),)), GOOD, ""),
        (Wanted(replicas=2, restarted=True), replace(GOOD, pods=(pod("a"), pod("c"))), GOOD, ""),
        (Wanted(replicas=2, release_back=True), replace(GOOD, system=(pod("gateway", ready=False),)), BEFORE, "not all ready"),
        (Wanted(replicas=2, release_back=True), replace(GOOD, system=()), BEFORE, "not all ready"),
        # Pods of a frozen node cannot go, but none of them may count.
        (Wanted(replicas=2, off_node=1), replace(GOOD, pods=(*GOOD.pods, pod("c", ready=False, node="node1"))), BEFORE, ""),
        (Wanted(replicas=2, off_node=1), replace(GOOD, pods=(pod("a"), pod("c", node="node1"))), BEFORE, "ready on node1"),
        (Wanted(replicas=0, gone=True), View(None, ()), BEFORE, ""),
        (Wanted(replicas=0, gone=True), View(None, (), left=frozenset({"ns:pod/a"})), BEFORE, "left: ['ns:pod/a']"),
    ],
)  # fmt: skip
def test_what_is_missing(wanted: Wanted, view: View, before: View, says: str) -> None:
    told = missing(view, wanted, before)
    assert says in told
    assert bool(told) == bool(says)


def test_what_a_release_keeps_is_not_left_over() -> None:
    view = View(None, (), left=frozenset({"system:secret/key"}))
    assert missing(view, Wanted(replicas=0, gone=True), BEFORE, kept=frozenset({"system:secret/key"})) == ""
