"""The invariants of the design, checked at every write and, where time matters, every few seconds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moefleet_operator import names
from moefleet_operator.core.events import Key, Kind
from moefleet_operator.planning.facts import unix_seconds

from .api import Api, Object, is_true
from .gateways import Gateway
from .nodes import Nodes
from .world import World

# What an operator can know is this old at most (late watch, decision tick, request under way).
STALE_S = 8.0
# Two unschedulable replicas of a fleet may exist for so long: the scheduler and the operator have to notice.
UNSCHEDULABLE_S = 60.0


@dataclass(slots=True)
class Told:
    """What the story has asked of a fleet lately, for rules that must allow for late news."""

    targets: list[tuple[float, int]] = field(default_factory=list)
    # When somebody else than the operator last took a replica, or changed the spec.
    disturbed_at: float = -1e9

    def wanted(self, now: float, pick: Any) -> int:
        """The largest or smallest target within STALE_S."""
        recent = [n for at, n in self.targets if at >= now - STALE_S]
        before = [n for at, n in self.targets if at < now - STALE_S]
        values = recent + before[-1:]
        return int(pick(values)) if values else 0


class Rules:
    def __init__(self, world: World, api: Api, nodes: Nodes, gateways: list[Gateway]) -> None:
        self.world, self.api, self.nodes, self.gateways = world, api, nodes, gateways
        self.told: dict[str, Told] = {}
        # Fleet uid -> when it was deleted.
        self.deleted: dict[str, float] = {}
        self._stuck_since: dict[str, float] = {}
        api.hooks.append(self._hook)
        world.after(5.0, self._every_5_s)

    def of(self, fleet_uid: str) -> Told:
        return self.told.setdefault(fleet_uid, Told())

    def aim(self, fleet_uid: str, target: int) -> None:
        self.of(fleet_uid).targets.append((self.world.now, target))

    def disturb(self, fleet_uid: str) -> None:
        self.of(fleet_uid).disturbed_at = self.world.now

    # --- at every write ---------------------------------------------------------------------------------------

    def _hook(self, kind: Kind, key: Key, before: Object | None, after: Object | None) -> None:
        if kind == "MoEFleet":
            self._fleet(key, before, after)
        if kind != "Pod":
            return
        if before is None and after is not None:
            self._created(key, after)
        if before is not None and after is not None:
            drains = not is_true(before, names.CONDITION_DRAINING) and is_true(
                after, names.CONDITION_DRAINING
            )
            if drains and is_true(before, "Ready"):
                self._taken_away(key, after, _condition(after, names.CONDITION_DRAINING)["reason"])
            if is_true(after, names.GATE_REGISTERED) and not is_true(before, names.GATE_REGISTERED):
                self._registered(key, after)
        self._streams_live()

    def _fleet(self, key: Key, before: Object | None, after: Object | None) -> None:
        if after is None and before is not None:
            self.deleted.setdefault(before["metadata"]["uid"], self.world.now)
        elif after is not None and "deletionTimestamp" in after["metadata"]:
            self.deleted.setdefault(after["metadata"]["uid"], self.world.now)
        if before is not None and after is not None and before["spec"] != after["spec"]:
            self.disturb(after["metadata"]["uid"])

    def _created(self, key: Key, pod: Object) -> None:
        owner = _owner(pod)
        deleted_at = self.deleted.get(owner)
        if deleted_at is not None and self.world.now > deleted_at + STALE_S:
            self.world.broken(
                "a fleet that is being deleted creates nothing", f"{key}, deleted at {deleted_at:.1f}"
            )
        labels = pod["metadata"]["labels"]
        expected = f"{labels[names.LABEL_FLEET]}-{labels[names.LABEL_REVISION]}-{labels[names.LABEL_SLOT]}"
        if key.name != expected:
            self.world.broken(
                "a replica's name is its fleet, revision and slot", f"{key.name} is not {expected}"
            )
        fleet = self._fleet_of(owner)
        if fleet is None:
            return
        live = [p for p in self.api.pods_of(owner) if _live(p)]
        slots = [
            (p["metadata"]["labels"][names.LABEL_REVISION], p["metadata"]["labels"][names.LABEL_SLOT])
            for p in live
        ]
        if len(set(slots)) != len(slots):
            self.world.broken("slots are unique", f"{sorted(slots)}")
        surge = 1 if len({p["metadata"]["labels"][names.LABEL_REVISION] for p in live}) > 1 else 0
        # A new leader holds what the last status says until scaling has spoken to it.
        held = (fleet.get("status") or {}).get("desiredReplicas", 0)
        most = max(held, self.of(owner).wanted(self.world.now, max))
        if len(live) > most + surge:
            self.world.broken(
                "pending replicas are supply",
                f"{len(live)} replicas live after creating {key}, at most {most} were wanted, {surge} of them by surge",
            )
        limit = fleet["spec"]["scaling"]["maxReplicas"]
        if len(live) > limit + surge:
            self.world.broken(
                "never above maxReplicas", f"{len(live)} live after creating {key}, maxReplicas {limit}"
            )

    def _taken_away(self, key: Key, pod: Object, reason: str) -> None:
        """The operator takes a ready replica out of service: enough others must be ready."""
        owner = _owner(pod)
        fleet = self._fleet_of(owner)
        if fleet is None or self.world.now < self.of(owner).disturbed_at + STALE_S:
            return
        wanted = self.of(owner).wanted(self.world.now, min)
        if wanted == 0:
            return
        ready = sum(1 for p in self.api.pods_of(owner) if _live(p) and is_true(p, "Ready"))
        rollout = fleet["spec"].get("rollout", {})
        floor = min(wanted, fleet["spec"]["scaling"]["minReplicas"])
        if reason == "Rollout":
            floor = min(floor, max(wanted - rollout.get("maxUnavailable", 1), 0))
            if rollout.get("strategy", "Auto") != "InPlace":
                floor = max(1, floor)
        if ready < floor:
            self.world.broken(
                "never below the minimum by our own doing",
                f"{ready} replicas are ready after {key} was taken away for {reason}, {floor} must be",
            )

    def _registered(self, key: Key, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        resumed_at = unix_seconds(_condition(pod, names.CONDITION_DRAINING).get("lastTransitionTime"))
        if self.world.wall < resumed_at + 2 * STALE_S:
            # Drained and taken back at once: a slow gateway may never have noticed, or notices the first half now.
            return
        if not any(uid in g.endpoints and g.endpoints[uid].registered for g in self.gateways):
            # It may have been withdrawn a moment ago, but then the replica is going.
            replica = self.nodes.replicas.get(uid)
            if (
                replica is not None
                and replica.state == "SERVING"
                and not is_true(pod, names.CONDITION_DRAINING)
            ):
                self.world.broken("the gate opens when a gateway knows the replica", str(key))

    def _streams_live(self) -> None:
        for age_s, name in self.nodes.cut:
            self.world.broken("no stream is cut", f"{name}: a stream of {age_s:.1f} s")

    # --- as time goes by ----------------------------------------------------------------------------------------

    def _every_5_s(self) -> None:
        for fleet in self.api.all("MoEFleet"):
            uid = fleet["metadata"]["uid"]
            stuck = [
                p
                for p in self.api.pods_of(uid)
                if _live(p) and _condition(p, "PodScheduled").get("status") == "False"
            ]
            if len(stuck) <= 1:
                self._stuck_since.pop(uid, None)
                continue
            since = self._stuck_since.setdefault(uid, self.world.now)
            if self.world.now - since > UNSCHEDULABLE_S:
                self.world.broken(
                    "replicas that cannot be scheduled are bounded",
                    f"{len(stuck)} of {fleet['metadata']['name']} for {self.world.now - since:.0f} s",
                )
        self._streams_live()
        self.world.after(5.0, self._every_5_s)

    # --- at the end ---------------------------------------------------------------------------------------------

    def settled(self, fleet: Object, wanted: int) -> None:
        """Nothing is left to do, and the status says so."""
        meta, status = fleet["metadata"], fleet.get("status") or {}
        name, uid = meta["name"], meta["uid"]
        pods = [p for p in self.api.pods_of(uid) if p["status"]["phase"] != "Failed"]
        facts = {
            "pods": len(pods),
            "live": sum(1 for p in pods if _live(p)),
            "ready": sum(1 for p in pods if _live(p) and is_true(p, "Ready")),
            "of the current revision": sum(
                1 for p in pods if p["metadata"]["labels"][names.LABEL_REVISION] == status.get("revision")
            ),
            "status.replicas": status.get("replicas"),
            "status.readyReplicas": status.get("readyReplicas"),
            "status.desiredReplicas": status.get("desiredReplicas"),
        }
        wrong = {k: v for k, v in facts.items() if v != wanted}
        if wrong:
            self.world.broken(
                "a fleet settles", f"{name}: wanted {wanted} everywhere, found {wrong}; {_conditions(fleet)}"
            )
        if status.get("observedGeneration") != meta["generation"]:
            self.world.broken(
                "a fleet settles", f"{name}: status is of generation {status.get('observedGeneration')}"
            )
        expected = {"Reconciling": "False", "Stalled": "False", "Ready": "True", "RolloutHeld": "False"}
        for type_, value in expected.items():
            if _condition(fleet, type_).get("status") != value:
                self.world.broken("a fleet settles", f"{name}: {type_} is not {value}: {_conditions(fleet)}")
        budget = self.api.get("PodDisruptionBudget", Key(meta["namespace"], name))
        least = max(0, wanted - fleet["spec"].get("rollout", {}).get("maxUnavailable", 1))
        if budget is None or budget["spec"]["minAvailable"] != least:
            self.world.broken(
                "the PDB follows the target", f"{name}: {budget and budget['spec']}, wanted {least}"
            )
        if self.api.get("Service", Key(meta["namespace"], name)) is None:
            self.world.broken("a fleet has a Service", name)

    def nameless(self, fleet: Object) -> None:
        """A fleet whose model name an older one has."""
        pods = self.api.pods_of(fleet["metadata"]["uid"])
        ready = _condition(fleet, "Ready")
        if pods or ready.get("reason") != "ModelNameTaken":
            self.world.broken(
                "the oldest fleet has the model name", f"{len(pods)} pods, {_conditions(fleet)}"
            )

    def _fleet_of(self, uid: str) -> Object | None:
        return next((f for f in self.api.all("MoEFleet") if f["metadata"]["uid"] == uid), None)


def _live(pod: Object) -> bool:
    return (
        "deletionTimestamp" not in pod["metadata"]
        and pod["status"]["phase"] not in ("Failed", "Succeeded")
        and not is_true(pod, names.CONDITION_DRAINING)
    )


def _owner(pod: Object) -> str:
    return next(
        (str(o["uid"]) for o in pod["metadata"].get("ownerReferences") or () if o.get("controller")), ""
    )


def _condition(found: Object, type_: str) -> dict[str, Any]:
    return next((c for c in found["status"].get("conditions") or () if c["type"] == type_), {})


def _conditions(fleet: Object) -> list[str]:
    return [
        f"{c['type']}={c['status']}/{c['reason']}: {c['message']}"
        for c in (fleet.get("status") or {}).get("conditions", ())
    ]
