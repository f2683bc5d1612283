"""The invariants of the design, checked at every write and, where time matters, every few seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from moefleet_operator import names
from moefleet_operator.core.effects import CreatePod, DeletePod, Effect, WriteLease
from moefleet_operator.core.events import Key, Kind
from moefleet_operator.planning.facts import unix_seconds

from .api import LEASE_EFFECTS, Api, Object, condition, is_true, owner_of, uid_of
from .gateways import Gateway
from .nodes import Nodes
from .operators import LEASE, OperatorProcess
from .world import World

# What an operator that hears everything can know is this old at most (late watch, decision tick, request under way).
STALE_S = 8.0
# Two unschedulable replicas of a fleet may exist for so long: the scheduler and the operator have to notice.
UNSCHEDULABLE_S = 60.0
# Writes of one kind about one object in RATE_S: one that is worked on needs some dozens, one that spins needs thousands.
RATE_S, RATE_WRITES = 30.0, 120
# After etcd went back, two operators may each hold what they believe is the Lease: one renewal deadline.
RESTORED_S = 12.0
# A refused revision gives way to the last that proved itself, even if its last replica was lost a while ago.
SERVED_S = 600.0
# Clocks may differ by so much; the grace of a pod whose drain is over covers it.
CLOCKS_S = 30.0


@dataclass(slots=True)
class Told:
    """What the story has asked of a fleet lately, for rules that must allow for late news."""

    targets: list[tuple[float, int]] = field(default_factory=list)
    limits: list[tuple[float, int]] = field(default_factory=list)
    modes: list[tuple[float, str]] = field(default_factory=list)
    # What scaling said, followed or not.
    advice: list[tuple[float, int]] = field(default_factory=list)
    speeds: list[tuple[float, Any]] = field(default_factory=list)
    # Engine arguments of replicas that were ready, and when one was last.
    served: dict[str, float] = field(default_factory=dict)
    # When somebody else than the operator last took a replica, or changed the spec.
    disturbed_at: float = -1e9


def lately(told: Iterable[tuple[float, Any]], since: float) -> list[Any]:
    """What was said since then, and what held then."""
    known = list(told)
    before = [v for at, v in known if at < since]
    return before[-1:] + [v for at, v in known if at >= since]


class Rules:
    def __init__(
        self,
        world: World,
        api: Api,
        nodes: Nodes,
        gateways: list[Gateway],
        operators: list[OperatorProcess],
    ) -> None:
        self.world, self.api, self.nodes = world, api, nodes
        self.gateways, self.operators = gateways, operators
        self.told: dict[str, Told] = {}
        # Fleets whose last decision is "I do not know", since then.
        self.restored_at = -1e9
        # Control faults that slow everything down end then; rules about promptness wait for it.
        self.troubled_until = 0.0
        # Every gateway that there ever was.
        self.all_gateways: list[Gateway] = []
        # When an operator last took the Lease.
        self._acquired_at = -1e9
        self._drained_at: dict[str, float] = {}
        self._stuck_since: dict[str, float] = {}
        self._writes: dict[tuple[Key, str], list[float]] = {}
        api.hooks.append(self._hook)
        world.after(5.0, self._every_5_s)

    def of(self, fleet_uid: str) -> Told:
        return self.told.setdefault(fleet_uid, Told())

    def aim(self, fleet_uid: str, target: int) -> None:
        self.of(fleet_uid).targets.append((self.world.now, target))

    def advised(self, fleet_uid: str, number: int) -> None:
        self.of(fleet_uid).advice.append((self.world.now, number))

    def advice(self, fleet_uid: str) -> list[int]:
        """What an operator may know as the last word of scaling."""
        return lately(self.of(fleet_uid).advice, self.since())

    def may_follow_scaling(self, fleet_uid: str) -> bool:
        """Mode is Automatic, or was when an operator last heard of the fleet."""
        return "Automatic" in lately(self.of(fleet_uid).modes, self.since())

    def disturb(self, fleet_uid: str) -> None:
        self.of(fleet_uid).disturbed_at = self.world.now

    def disturb_all(self) -> None:
        for told in self.told.values():
            told.disturbed_at = self.world.now

    def trouble(self, until: float) -> None:
        self.troubled_until = max(self.troubled_until, until)

    def since(self) -> float:
        """What happened before this time, an operator that acts now may be expected to know."""
        deaf = [o.deaf_since for o in self.operators if o.alive and o.deaf_since is not None]
        since = min([self.world.now, *deaf]) - STALE_S
        return since - 30.0 if self.world.now < self.troubled_until + 10.0 else since

    # --- at every effect ----------------------------------------------------------------------------------------

    def check(self, operator: OperatorProcess, effect: Effect) -> None:
        """Called when a request of an operator reaches the API server."""
        if isinstance(effect, LEASE_EFFECTS):
            if isinstance(effect, WriteLease) and effect.intent == "acquire":
                self._acquired_at = self.world.now
            return
        self._only_the_holder(operator, effect)
        self._not_too_often(effect)
        if isinstance(effect, DeletePod):
            self._deleted(effect)
        elif isinstance(effect, CreatePod):
            self._wanted_revision(effect)

    def _only_the_holder(self, operator: OperatorProcess, effect: Effect) -> None:
        lease = self.api.get("Lease", LEASE)
        holder = lease["spec"]["holderIdentity"] if lease is not None else ""
        if holder != operator.name and self.world.now > self.restored_at + RESTORED_S:
            self.world.broken(
                "only the holder of the Lease writes",
                f"{operator.name} writes, {holder!r} holds it: {effect.reason} {effect.object}",
            )

    def _not_too_often(self, effect: Effect) -> None:
        now = self.world.now
        times = self._writes.setdefault((effect.object, type(effect).__name__), [])
        times.append(now)
        if len(times) > RATE_WRITES:
            if times[0] > now - RATE_S:
                self.world.broken(
                    "no hot loop",
                    f"{len(times)} writes about {effect.object} in {now - times[0]:.0f} s, the last: {effect.reason}",
                )
            del times[: RATE_WRITES // 2]

    def _deleted(self, effect: DeletePod) -> None:
        """A replica that drains is deleted when it has confirmed that nothing runs, or at its deadline."""
        pod, replica = self.api.pod(effect.uid), self.nodes.replicas.get(effect.uid)
        if pod is None or replica is None or not replica.alive or not replica.streams:
            return
        drain = condition(pod, names.CONDITION_DRAINING)
        fleet = self.api.fleet(owner_of(pod))
        if drain.get("status") != "True" or fleet is None or effect.uid in self.nodes.excused:
            return
        age_s = self.world.now - self._drained_at.get(effect.uid, -1e9)
        limit_s = seconds(fleet["spec"]["rollout"]["drainTimeout"])
        if age_s < limit_s - STALE_S - CLOCKS_S:
            self.world.broken(
                "a replica is deleted when nothing runs in it",
                f"{effect.object}: {len(replica.streams)} streams run, it drains for {age_s:.0f} of {limit_s:.0f} s",
            )

    def _wanted_revision(self, effect: CreatePod) -> None:
        """New replicas are of a revision that was lately asked for (an undo may go back to one that served)."""
        if self.api.fleet(owner_of(effect.body)) is None:
            # Who does not know it yet may have seen its revisions go before it; its pods are collected.
            return
        speed = speed_of(effect.body)
        told = self.of(owner_of(effect.body))
        recent = lately(told.speeds, self.since())
        serving = {speed_of(p) for p in self.api.pods_of(owner_of(effect.body)) if is_true(p, "Ready")}
        lately_served = {s for s, at in told.served.items() if at > self.world.now - SERVED_S}
        allowed = {*recent, *serving, *lately_served, *self._last_good(owner_of(effect.body))}
        if speed not in allowed:
            self.world.broken(
                "a new replica is of the wanted revision",
                f"{effect.object} has {speed}, asked for lately: {recent}, serving: {serving | lately_served}",
            )

    def _last_good(self, fleet_uid: str) -> list[str]:
        """Engine arguments of the newest revisions that proved themselves: to one of these an undo goes back."""
        found = [
            (r["revision"], json.dumps(r["data"]["spec"]["engine"]["args"], sort_keys=True))
            for r in self.api.all("ControllerRevision")
            if owner_of(r) == fleet_uid and r["metadata"]["labels"].get(names.LABEL_VERDICT) == "good"
        ]
        return [args for _, args in sorted(found)[-2:]]

    # --- at every write ---------------------------------------------------------------------------------------

    def _hook(self, kind: Kind, key: Key, before: Object | None, after: Object | None) -> None:
        if kind == "MoEFleet":
            if after is not None:
                self._fleet(before, after)
            return
        if kind != "Pod" or not owner_of(after or before or {}):
            return
        if after is not None:
            if before is None:
                self._created(key, after)
            elif uid_of(before) == uid_of(after) and self.world.now > self.restored_at:
                self._changed(key, before, after)
        self._streams_live()

    def _fleet(self, before: Object | None, after: Object) -> None:
        told = self.of(uid_of(after))
        spec = after["spec"]
        if before is None or before["spec"] != spec:
            now = self.world.now
            told.limits.append((now, spec["scaling"]["maxReplicas"]))
            told.modes.append((now, spec["scaling"]["mode"]))
            told.speeds.append((now, json.dumps(spec["engine"]["args"], sort_keys=True)))
            if before is None or _without_engine(before) != _without_engine(after):
                told.disturbed_at = now
        if before is None or self.world.now <= self.restored_at:
            return
        was, is_now = ((f.get("status") or {}).get("desiredReplicas") for f in (before, after))
        if was is None or is_now is None or was == is_now:
            return
        asked = lately(told.targets, self.since())
        if asked and self.world.now < self._acquired_at + 2 * STALE_S:
            # A new leader holds what the last status says, within the bounds, until scaling has spoken to it.
            scaling = spec["scaling"]
            asked.append(min(max(was, scaling["minReplicas"]), scaling["maxReplicas"]))
        if asked and not min(asked) <= is_now <= max(asked) and not _blocked(after):
            self.world.broken(
                "a target is what was asked for",
                f"{after['metadata']['name']}: {was} -> {is_now}, asked for lately: {asked}",
            )

    def _created(self, key: Key, pod: Object) -> None:
        if self.world.now == self.restored_at:
            # Back from the backup, with what people had done to it.
            return
        owner = owner_of(pod)
        labels = pod["metadata"]["labels"]
        expected = f"{labels[names.LABEL_FLEET]}-{labels[names.LABEL_REVISION]}-{labels[names.LABEL_SLOT]}"
        if key.name != expected:
            self.world.broken(
                "a replica's name is its fleet, revision and slot", f"{key.name} is not {expected}"
            )
        fleet = self.api.fleet(owner)
        if fleet is None or self.world.now <= self.restored_at + STALE_S:
            return
        pods = self.api.pods_of(owner)
        living = [p for p in pods if live(p) and not self._node_lost(p)]
        slots = [
            (p["metadata"]["labels"][names.LABEL_REVISION], p["metadata"]["labels"][names.LABEL_SLOT])
            for p in pods
            if names.LABEL_SLOT in p["metadata"]["labels"]
        ]
        if len(set(slots)) != len(slots):
            self.world.broken("slots are unique", f"{sorted(slots)}")
        surge = 1 if len({revision_of(p) for p in living}) > 1 or self._must_leave(living) else 0
        # A new leader holds what the last status says until scaling has spoken to it.
        held = (fleet.get("status") or {}).get("desiredReplicas", 0)
        told = self.of(owner)
        most = max([held, *lately(told.targets, self.since())])
        if len(living) > most + surge:
            self.world.broken(
                "pending replicas are supply",
                f"{len(living)} replicas live after creating {key}, at most {most} were wanted, {surge} of them by surge",
            )
        limit = max(lately(told.limits, self.since()))
        if len(living) > limit + surge:
            self.world.broken(
                "never above maxReplicas", f"{len(living)} live after creating {key}, maxReplicas {limit}"
            )
        self._warm_before_cold(key, pods, labels[names.LABEL_REVISION], most)

    def _warm_before_cold(self, key: Key, pods: list[Object], revision: str, most: int) -> None:
        warm = [p for p in pods if self._could_be_resumed(p, revision)]
        # Cold ones are made for what the warm ones do not fill.
        if warm and sum(1 for p in pods if live(p)) + len(warm) > most:
            self.world.broken(
                "a warm replica comes back before a cold one is made",
                f"{key} is made while {warm[0]['metadata']['name']} drains and could be resumed",
            )

    def _could_be_resumed(self, pod: Object, revision: str) -> bool:
        drain = condition(pod, names.CONDITION_DRAINING)
        replica = self.nodes.replicas.get(uid_of(pod))
        return (
            drain.get("status") == "True"
            and drain.get("reason") in ("ScaleDown", "Rollout")
            and revision_of(pod) == revision
            and "deletionTimestamp" not in pod["metadata"]
            and pod["status"]["phase"] == "Running"
            and replica is not None
            and replica.answers
            and not replica.terminated
            and replica.state == "DRAINING"
            and self.world.now - replica.turned_at > 2 * STALE_S
            and unix_seconds(drain["lastTransitionTime"]) < self.world.wall - 2 * STALE_S
            and self.world.now > self.troubled_until + 2 * STALE_S
            and not self._must_leave([pod])
        )

    def _changed(self, key: Key, before: Object, after: Object) -> None:
        drains = not is_true(before, names.CONDITION_DRAINING) and is_true(after, names.CONDITION_DRAINING)
        if drains:
            self._drained_at[uid_of(after)] = self.world.now
        if drains and is_true(before, "Ready") and "deletionTimestamp" not in after["metadata"]:
            self._taken_away(key, after, condition(after, names.CONDITION_DRAINING)["reason"])
        if is_true(before, "Ready") and not is_true(after, "Ready"):
            self.of(owner_of(after)).served[speed_of(after)] = self.world.now
        if is_true(after, names.GATE_REGISTERED) and not is_true(before, names.GATE_REGISTERED):
            self._registered(key, after)

    def _taken_away(self, key: Key, pod: Object, reason: str) -> None:
        """The operator takes a ready replica out of service: enough others must be ready."""
        owner = owner_of(pod)
        fleet = self.api.fleet(owner)
        since = self.since()
        if fleet is None or since < self.of(owner).disturbed_at:
            return
        asked = lately(self.of(owner).targets, since)
        held = (fleet.get("status") or {}).get("desiredReplicas")
        if asked and held is not None and self.world.now < self._acquired_at + 2 * STALE_S:
            # A new leader holds what the last status says until scaling has spoken to it.
            asked.append(held)
        wanted = min(asked) if asked else 0
        if wanted == 0:
            return
        pods = self.api.pods_of(owner)
        ready = sum(1 for p in pods if live(p) and is_true(p, "Ready"))
        rollout = fleet["spec"]["rollout"]
        floor = min(wanted, fleet["spec"]["scaling"]["minReplicas"])
        if reason == "Rollout":
            floor = min(floor, max(wanted - rollout["maxUnavailable"], 0))
            if rollout["strategy"] != "InPlace":
                floor = max(1, floor)
        if ready < floor:
            self.world.broken(
                "never below the minimum by our own doing",
                f"{ready} replicas are ready after {key} was taken away for {reason}, {floor} must be",
            )
        if reason == "ScaleDown" and len(set(asked)) == 1:
            self._cheapest_goes(key, pod, [p for p in pods if live(p)], wanted)

    def _cheapest_goes(self, key: Key, pod: Object, others: list[Object], wanted: int) -> None:
        """Never started before ready, idle before busy: only where it has been so for longer than news may take."""
        if self.world.now < self.troubled_until + 2 * STALE_S:
            return
        cold = [p for p in others if not is_true(p, "Ready") and self._never_started(p)]
        extra = len(others) + 1 - wanted
        if len(cold) >= extra > 0 and len({revision_of(p) for p in [*others, pod]}) == 1:
            self.world.broken(
                "who never started goes first",
                f"{key} was ready and goes, {cold[0]['metadata']['name']} never started and stays",
            )
        if not self._steadily(pod, busy=True):
            return
        idle = [p for p in others if revision_of(p) == revision_of(pod) and self._steadily(p, busy=False)]
        if len(idle) >= extra > 0 and all(is_true(p, "Ready") for p in idle):
            self.world.broken(
                "the idle replica goes before the busy one",
                f"{key} has streams and goes, {idle[0]['metadata']['name']} has none and stays",
            )

    def _never_started(self, pod: Object) -> bool:
        young = self.world.wall - unix_seconds(pod["metadata"]["creationTimestamp"]) < 2 * STALE_S
        started = any(c.get("started") for c in pod["status"].get("containerStatuses") or ())
        return not young and not started

    def _steadily(self, pod: Object, *, busy: bool) -> bool:
        replica = self.nodes.replicas.get(uid_of(pod))
        return (
            replica is not None
            and replica.answers
            and bool(replica.streams) == busy
            and self.world.now - replica.turned_at > 2 * STALE_S
        )

    def _registered(self, key: Key, pod: Object) -> None:
        uid = uid_of(pod)
        resumed_at = unix_seconds(condition(pod, names.CONDITION_DRAINING).get("lastTransitionTime"))
        since = self.since() - STALE_S
        if self.world.wall - resumed_at < self.world.now - since:
            # Drained and taken back at once: a slow gateway may never have noticed, or notices the first half now.
            return
        if not any(g.knew(uid, since) for g in self.all_gateways):
            self.world.broken("the gate opens when a gateway knows the replica", str(key))

    def _streams_live(self) -> None:
        for age_s, name in self.nodes.cut:
            self.world.broken("no stream is cut", f"{name}: a stream of {age_s:.1f} s")

    def _must_leave(self, pods: list[Object]) -> bool:
        """A replica on a node that is cordoned, tainted or broken may be replaced before it goes."""
        for pod in pods:
            node = self.api.get("Node", Key("", pod["spec"].get("nodeName") or ""))
            if node is None or node["spec"].get("unschedulable") or node["spec"].get("taints"):
                return True
            if int(node["status"]["allocatable"]["nvidia.com/gpu"]) < 8:
                return True
        return False

    def _node_lost(self, pod: Object) -> bool:
        node = self.api.get("Node", Key("", pod["spec"].get("nodeName") or ""))
        return node is not None and node["status"]["conditions"][0]["status"] != "True"

    # --- as time goes by ----------------------------------------------------------------------------------------

    def _every_5_s(self) -> None:
        now = self.world.now
        if now < self.troubled_until + 10.0 or not any(o.leading() for o in self.operators):
            self._stuck_since.clear()
        unscheduled = [
            p
            for p in self.api.objects.get("Pod", {}).values()
            if not p["spec"].get("nodeName")
            and condition(p, "PodScheduled").get("status") == "False"
            and live(p)
        ]
        for fleet in self.api.all("MoEFleet"):
            uid = uid_of(fleet)
            stuck = [p for p in unscheduled if owner_of(p) == uid]
            if len(stuck) <= 1:
                self._stuck_since.pop(uid, None)
                continue
            since = self._stuck_since.setdefault(uid, now)
            if now - since > UNSCHEDULABLE_S:
                self.world.broken(
                    "replicas that cannot be scheduled are bounded",
                    f"{len(stuck)} of {fleet['metadata']['name']} for {now - since:.0f} s",
                )
        self._streams_live()
        self.world.after(5.0, self._every_5_s)


def live(pod: Object) -> bool:
    return (
        "deletionTimestamp" not in pod["metadata"]
        and pod["status"]["phase"] not in ("Failed", "Succeeded")
        and not is_true(pod, names.CONDITION_DRAINING)
    )


def revision_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"].get(names.LABEL_REVISION))


def speed_of(pod: Any) -> str:
    """The engine arguments of a replica, as the fleet's spec has them."""
    for variable in pod["spec"]["containers"][0].get("env") or ():
        if variable.get("name") == names.ENV_RUNTIME_CONFIG:
            return json.dumps(json.loads(variable["value"])["engine"].get("args") or {}, sort_keys=True)
    return ""


def seconds(duration: str) -> float:
    return float(duration.removesuffix("s"))


def _without_engine(fleet: Object) -> dict[str, Any]:
    """What decides how many replicas there are, and how many may go."""
    return {k: v for k, v in fleet["spec"].items() if k != "engine"}


def _blocked(fleet: Object) -> bool:
    """Another fleet has its model name: its target is 0 whatever was asked for."""
    return bool(condition(fleet, "Ready").get("reason") == "ModelNameTaken")


Check = Callable[[OperatorProcess, Effect], None]
