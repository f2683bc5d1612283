"""What the world does to the nodes under replicas: cordons, removals, notices, GPUs that fail, nodes that do not answer.

Pure judgement of one node and one pod; what follows from it is in `leaving`. Nobody else's word is needed for it: whoever
empties or removes a node says so on the node, and the device plugin's and the kubelet's word is in its status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moefleet_operator.api import conditions as reasons

from .facts import NodeFacts, PodFacts
from .quantity import Vector

# The control plane calls a node NotReady 50 s after its last word; a kubelet that is started anew is back well before this,
# and Kubernetes itself gives the pods up after 300 s.
NODE_LOST_AFTER_S = 60.0
# A kubelet that was started anew has no GPUs until the device plugin has registered again.
GPU_FAILED_AFTER_S = 60.0

# Taints of those who will take the node away: key -> reason and words. Their pods have minutes.
TAKING: Mapping[str, tuple[str, str]] = {
    "ToBeDeletedByClusterAutoscaler": (reasons.NODE_BEING_REMOVED, "the cluster autoscaler removes it"),
    "karpenter.sh/disrupted": (reasons.NODE_BEING_REMOVED, "Karpenter replaces it"),
    "karpenter.sh/disruption": (reasons.NODE_BEING_REMOVED, "Karpenter replaces it"),
    "aws-node-termination-handler/spot-itn": (reasons.NODE_INTERRUPTED, "its spot capacity is taken back"),
    "aws-node-termination-handler/rebalance-recommendation": (
        reasons.NODE_INTERRUPTED,
        "its spot capacity is likely to be taken back",
    ),
    "aws-node-termination-handler/scheduled-maintenance": (
        reasons.NODE_INTERRUPTED,
        "its maintenance is due",
    ),
    "aws-node-termination-handler/asg-lifecycle-termination": (
        reasons.NODE_BEING_REMOVED,
        "its scaling group ends it",
    ),
    "cloud.google.com/impending-node-termination": (reasons.NODE_INTERRUPTED, "it is about to be ended"),
}
# Taints that say: nothing runs on it any more.
GONE: Mapping[str, str] = {
    "node.kubernetes.io/out-of-service": "it is out of service",
    "node.cloudprovider.kubernetes.io/shutdown": "it was shut down",
}
# Only a candidate: the autoscaler takes it back as soon as the node is needed. Moving replicas away would decide for it;
# when fewer are wanted, those on candidates go first.
CANDIDATE_TAINT = "DeletionCandidateOfClusterAutoscaler"


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """The node of a replica, and how long its GPUs have been too few for the pods that use them."""

    facts: NodeFacts
    short: Shortage | None = None


@dataclass(frozen=True, slots=True)
class Shortage:
    """The node lists fewer devices as usable than its pods have; counts of devices, seconds since it was first seen so."""

    resource: str
    usable: int
    in_use: int
    for_s: float


@dataclass(frozen=True, slots=True)
class Trouble:
    reason: str
    # A clause: "node-3 is cordoned".
    message: str
    # It is taken away whatever we do; otherwise somebody waits until it is empty.
    urgent: bool = False
    # Nobody answers there; a replica that is not heard any more counts as gone.
    lost: bool = False


def trouble(pod: PodFacts, node: NodeSeen | None, now: float) -> Trouble | None:
    """Why this replica should not stay where it is; None: nothing is known against it."""
    if pod.unhealthy:
        said = ", ".join(pod.unhealthy)
        return Trouble(reasons.GPU_FAILED, f"the kubelet of {pod.node} calls {said} unhealthy")
    if node is None:
        return None
    facts = node.facts
    for taint in facts.taints:
        if taint.key in GONE:
            return Trouble(reasons.NODE_LOST, f"{facts.name}: {GONE[taint.key]}", urgent=True, lost=True)
    if facts.unready_since is not None and now >= facts.unready_since + NODE_LOST_AFTER_S:
        said = f"{facts.name} has not answered for more than {NODE_LOST_AFTER_S:.0f} s"
        return Trouble(reasons.NODE_LOST, said, urgent=True, lost=True)
    for taint in facts.taints:
        if taint.key in TAKING:
            reason, words = TAKING[taint.key]
            return Trouble(reason, f"{facts.name}: {words}", urgent=True)
    short = node.short
    if short is not None and short.for_s >= GPU_FAILED_AFTER_S:
        return Trouble(
            reasons.GPU_FAILED,
            f"{facts.name} has {short.usable} usable {short.resource} and its pods use {short.in_use}",
        )
    if facts.cordoned:
        return Trouble(reasons.NODE_CORDONED, f"{facts.name} is cordoned")
    return None


def suspect(pod: PodFacts, node: NodeSeen | None) -> bool:
    """Whether `trouble` may find something now or later."""
    if node is None:
        return bool(pod.unhealthy)
    facts = node.facts
    told = any(t.key in TAKING or t.key in GONE for t in facts.taints)
    return bool(pod.unhealthy) or not facts.open or told or node.short is not None


def judged_at(node: NodeSeen | None, now: float) -> float | None:
    """When waiting alone will change the judgement; None: only an event does."""
    if node is None:
        return None
    times = []
    if node.facts.unready_since is not None:
        times.append(node.facts.unready_since + NODE_LOST_AFTER_S)
    if node.short is not None:
        times.append(now + GPU_FAILED_AFTER_S - node.short.for_s)
    return min((t for t in times if t > now), default=None)


def candidate(node: NodeSeen | None) -> bool:
    """An autoscaler would like to have this node empty."""
    return node is not None and any(t.key == CANDIDATE_TAINT for t in node.facts.taints)


def shortage(
    pod: PodFacts, facts: NodeFacts, used: Vector, since: float | None, now: float
) -> Shortage | None:
    """Of the devices that this pod asks for (extended resources only: those are whole things that break). `used`: by all
    pods of the node, in thousandths; `since`: when it was first seen so, by the clock of `now`; None: just now."""
    for resource, wanted in pod.requests.items():
        if "/" not in resource or not wanted:
            continue
        usable, in_use = facts.allocatable.get(resource, 0), max(wanted, used.get(resource, 0))
        if usable < in_use:
            began = now if since is None else since
            return Shortage(resource, usable // 1000, in_use // 1000, now - began)
    return None
