"""All observed objects, indexed. Fed by watch events and by what our own writes returned, whichever is newer.

Because a write's result is stored at once and older watch events are ignored, the next plan sees what we have just
done: a slow watch never causes a second create or delete. There is nothing to expire: names are deterministic, and
the API server's answer to a wrong guess (409, 404) is an observation as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from moefleet_operator import names
from moefleet_operator.api import MoEFleet
from moefleet_operator.api import conditions as reasons
from moefleet_operator.planning.facts import (
    NodeFacts,
    OtherPod,
    PodFacts,
    node_facts,
    other_pod,
    owned,
    pod_facts,
    unix_seconds,
    version_of,
)
from moefleet_operator.planning.history import history_of
from moefleet_operator.planning.observed import Fleet, fleet_of
from moefleet_operator.planning.revisions import PastRevision
from moefleet_operator.rendering.problem import Problem

from .events import KINDS, Json, Key, Kind
from .usage import Usage

# Uids of deleted objects that a late watch event must not bring back: far more than can be late at a time.
GONE_MAX = 10_000


@dataclass(frozen=True, slots=True)
class FleetRecord:
    raw: Json
    uid: str
    version: int
    # Problem: an object that we cannot read.
    parsed: tuple[MoEFleet, Fleet] | Problem

    @property
    def model_name(self) -> str:
        return "" if isinstance(self.parsed, Problem) else self.parsed[1].model_name

    @property
    def deleting(self) -> bool:
        return bool((self.raw.get("metadata") or {}).get("deletionTimestamp"))

    @property
    def age_order(self) -> tuple[float, str]:
        meta = self.raw.get("metadata") or {}
        return (unix_seconds(meta.get("creationTimestamp")), self.uid)


class Store:
    def __init__(self) -> None:
        self.fleets: dict[Key, FleetRecord] = {}
        self.pods: dict[Key, PodFacts] = {}
        self.others: dict[Key, OtherPod] = {}
        self.nodes: dict[Key, NodeFacts] = {}
        self.gateways: dict[Key, PodFacts] = {}
        self.children: dict[tuple[Kind, Key], Json] = {}
        # By namespace and then by name.
        self.quotas: dict[str, dict[str, Json]] = {}
        self.usage = Usage()
        # Changes with what the scheduler looks at in any node.
        self.nodes_version = 0
        self._fleet_by_uid: dict[str, Key] = {}
        self._pods_by_label: dict[Key, set[Key]] = {}
        self._pods_by_owner: dict[str, set[Key]] = {}
        self._pod_by_uid: dict[str, Key] = {}
        self._models: dict[str, set[Key]] = {}
        # ControllerRevisions by the fleet of their label.
        self._revisions: dict[Key, dict[Key, Json]] = {}
        self._histories: dict[Key, tuple[str, tuple[PastRevision, ...]]] = {}
        # Uid and version of everything that is here.
        self._seen: dict[Kind, dict[Key, tuple[str, int]]] = {kind: {} for kind in KINDS}
        self._gone: OrderedDict[str, None] = OrderedDict()
        # The newest LIST of each kind, and whether the one after it was older.
        self._listed: dict[Kind, tuple[int, bool]] = {}

    # --- reading --------------------------------------------------------------------------------------------

    def pods_of(self, fleet: Key, uid: str) -> list[PodFacts]:
        """Pods that this very fleet owns, by slot."""
        found = [
            self.pods[key] for key in self._pods_by_owner.get(uid, ()) if key.namespace == fleet.namespace
        ]
        return sorted(found, key=lambda p: (p.revision, p.slot, p.name))

    def orphans_of(self, fleet: Key) -> list[PodFacts]:
        found = [self.pods[key] for key in self._pods_by_label.get(fleet, ()) if not self.pods[key].owner_uid]
        return sorted(found, key=lambda p: (p.slot, p.name))

    def history(self, fleet: Key, uid: str) -> tuple[PastRevision, ...]:
        """The ControllerRevisions that this very fleet owns, oldest first: read anew only when one of them changes."""
        known = self._histories.get(fleet)
        if known is None or known[0] != uid:
            known = self._histories[fleet] = (uid, history_of(self._revisions.get(fleet, {}).values(), uid))
        return known[1]

    def names_taken(self, fleet: Key) -> set[str]:
        """Names of all pods with this fleet's label, whoever owns them."""
        return {key.name for key in self._pods_by_label.get(fleet, ())}

    def pod_by_uid(self, uid: str) -> PodFacts | None:
        key = self._pod_by_uid.get(uid)
        return self.pods.get(key) if key is not None else None

    def fleet_of_pod(self, pod: PodFacts) -> Key | None:
        """The owner's key; of an orphan, the fleet whose label it has."""
        return self._fleet_by_uid.get(pod.owner_uid) or (
            Key(pod.namespace, pod.fleet) if not pod.owner_uid and pod.fleet else None
        )

    def name_owner(self, key: Key) -> Key | None:
        """The oldest fleet that has this one's model name, if it is another one."""
        record = self.fleets[key]
        rivals = [
            (self.fleets[k].age_order, k)
            for k in self._models.get(record.model_name, ())
            if not self.fleets[k].deleting
        ]
        oldest = min(rivals, default=None)
        return None if oldest is None or oldest[1] == key else oldest[1]

    # --- writing --------------------------------------------------------------------------------------------

    def apply(self, kind: Kind, key: Key, raw: Json | None, uid: str = "") -> set[Key]:
        """An object as a watch, a LIST or the answer to a write had it, or that it is gone. Returns the fleets that should
        be looked at again."""
        if raw is None:
            return self._remove(kind, key, uid)
        meta: Json = raw.get("metadata") or {}
        seen_uid = str(meta.get("uid") or "")
        if seen_uid in self._gone:
            return set()
        known = self._seen[kind].get(key)
        if known is not None:
            known_uid, known_version = known
            # 0: somebody made this object up (tests); it is always news.
            if 0 < version_of(raw) <= known_version:
                return set()
            if seen_uid != known_uid:
                return self._remove(kind, key, known_uid) | self._put(kind, key, raw)
        return self._put(kind, key, raw)

    def exists(self, uid: str) -> None:
        """The API server has just shown the object with this uid: a watch by labels says that a pod is gone, too, when somebody
        takes its labels."""
        self._gone.pop(uid, None)

    def gone(self, kind: Kind, key: Key, uid: str) -> set[Key]:
        """The API server says that the object with this uid does not exist any more."""
        return self._remove(kind, key, uid)

    def relisted(self, kind: Kind, objects: Iterable[Json], as_of: int) -> set[Key]:
        """A full LIST: what it lacks is gone, unless we have it from after the LIST was read."""
        if self._went_back(kind, as_of):
            return self._replaced(kind, objects)
        touched: set[Key] = set()
        listed: set[Key] = set()
        seen = self._seen[kind]
        for raw in objects:
            meta: Json = raw.get("metadata") or {}
            key = Key(str(meta.get("namespace") or ""), str(meta.get("name") or ""))
            listed.add(key)
            known = seen.get(key)
            # Nearly all of it is known: a LIST heals what the watch has lost.
            if known is None or not 0 < version_of(raw) <= known[1]:
                touched |= self.apply(kind, key, raw)
        if not as_of:
            return touched
        for key in seen.keys() - listed:
            uid, version = seen[key]
            if version <= as_of:
                touched |= self._remove(kind, key, uid)
        return touched

    # --- inside ---------------------------------------------------------------------------------------------

    def _went_back(self, kind: Kind, as_of: int) -> bool:
        """Two LISTs in a row are older than one before them: etcd was restored from a backup. LISTs are consistent reads, so
        one alone would do; the second is for an API server that is wrong about it for a moment."""
        if not as_of:
            return False
        newest, doubted = self._listed.get(kind, (0, False))
        if as_of >= newest:
            self._listed[kind] = (as_of, False)
            return False
        self._listed[kind] = (as_of, False) if doubted else (newest, True)
        return doubted

    def _replaced(self, kind: Kind, objects: Iterable[Json]) -> set[Key]:
        """What is listed is all that there is, whatever newer we have: that was never so. What is gone may be there again."""
        self._gone.clear()
        touched: set[Key] = set()
        for key in set(self._seen[kind]):
            touched |= self._remove(kind, key, "")
        self._gone.clear()
        for raw in objects:
            meta: Json = raw.get("metadata") or {}
            touched |= self._put(
                kind, Key(str(meta.get("namespace") or ""), str(meta.get("name") or "")), raw
            )
        return touched

    def _put(self, kind: Kind, key: Key, raw: Json) -> set[Key]:
        meta: Json = raw.get("metadata") or {}
        self._seen[kind][key] = (str(meta.get("uid") or ""), version_of(raw))
        match kind:
            case "MoEFleet":
                return self._put_fleet(key, raw)
            case "Pod":
                return self._put_pod(key, raw)
            case "GatewayPod":
                self.gateways[key] = pod_facts(raw)
                return set(self.fleets)
            case "Node":
                node = node_facts(raw)
                before = self.nodes.get(key)
                self.nodes[key] = node
                # Heartbeats change nodes all the time; only what the scheduler looks at matters.
                if before is not None and _same_room(before, node):
                    return set()
                self.nodes_version += 1
                return set(self.fleets)
            case "ResourceQuota":
                self.children[kind, key] = raw
                self.quotas.setdefault(key.namespace, {})[key.name] = raw
                # Whoever waits for room is asked by the core.
                return set()
            case "ControllerRevision":
                touched = self._drop_revision(key)
                self.children[kind, key] = raw
                owners = self._owner_of(raw)
                for fleet in owners:
                    self._revisions.setdefault(fleet, {})[key] = raw
                    self._histories.pop(fleet, None)
                return touched | owners
            case _:
                was = self.children.get((kind, key))
                self.children[kind, key] = raw
                # A budget counts its pods in its status, at each of their changes.
                return set() if was is not None and _same_but_status(was, raw) else self._owner_of(raw)

    def _remove(self, kind: Kind, key: Key, uid: str) -> set[Key]:
        known = self._seen[kind].get(key)
        if uid:
            self._bury(uid)
            if known is not None and known[0] not in ("", uid):
                return set()
        if known is None:
            return set()
        self._bury(known[0])
        del self._seen[kind][key]
        match kind:
            case "MoEFleet":
                self._histories.pop(key, None)
                return self._drop_fleet(key) | {key}
            case "Pod":
                self.usage.remove(key)
                return self._drop_pod(key)
            case "GatewayPod":
                del self.gateways[key]
                return set(self.fleets)
            case "Node":
                del self.nodes[key]
                self.nodes_version += 1
                return set(self.fleets)
            case "ResourceQuota":
                del self.children[kind, key]
                found = self.quotas[key.namespace]
                del found[key.name]
                if not found:
                    del self.quotas[key.namespace]
                return set()
            case "ControllerRevision":
                return self._drop_revision(key)
            case _:
                return self._owner_of(self.children.pop((kind, key)))

    def _put_fleet(self, key: Key, raw: Json) -> set[Key]:
        known = self.fleets.get(key)
        touched = self._drop_fleet(key)
        record = _fleet_record(raw, known)
        self.fleets[key] = record
        self._fleet_by_uid[record.uid] = key
        self._models.setdefault(record.model_name, set()).add(key)
        return touched | self._models[record.model_name] | {key}

    def _drop_fleet(self, key: Key) -> set[Key]:
        record = self.fleets.pop(key, None)
        if record is None:
            return set()
        self._fleet_by_uid.pop(record.uid, None)
        rivals = self._models[record.model_name]
        rivals.discard(key)
        return set(rivals)

    def _put_pod(self, key: Key, raw: Json) -> set[Key]:
        touched = self._drop_pod(key)
        labels: Mapping[str, Any] = (raw.get("metadata") or {}).get("labels") or {}
        if labels.get(names.LABEL_NAME) != names.REPLICA_APP and not owned(raw):
            other = other_pod(raw)
            self.others[key] = other
            self.usage.set(key, other.node, other.requests, not other.finished)
            return touched
        pod = pod_facts(raw)
        self.pods[key] = pod
        self._pod_by_uid[pod.uid] = key
        self._pods_by_label.setdefault(Key(pod.namespace, pod.fleet), set()).add(key)
        if pod.owner_uid:
            self._pods_by_owner.setdefault(pod.owner_uid, set()).add(key)
        self.usage.set(key, pod.node, pod.requests, not pod.finished)
        fleet = self.fleet_of_pod(pod)
        return touched | ({fleet} if fleet is not None else set())

    def _drop_pod(self, key: Key) -> set[Key]:
        self.others.pop(key, None)
        pod = self.pods.pop(key, None)
        if pod is None:
            return set()
        self._pod_by_uid.pop(pod.uid, None)
        _discard(self._pods_by_label, Key(pod.namespace, pod.fleet), key)
        _discard(self._pods_by_owner, pod.owner_uid, key)
        fleet = self.fleet_of_pod(pod)
        return {fleet} if fleet is not None else set()

    def _drop_revision(self, key: Key) -> set[Key]:
        before = self.children.pop(("ControllerRevision", key), None)
        if before is None:
            return set()
        fleets = self._owner_of(before)
        for fleet in fleets:
            found = self._revisions.get(fleet, {})
            found.pop(key, None)
            self._histories.pop(fleet, None)
            if not found:
                self._revisions.pop(fleet, None)
        return fleets

    def _owner_of(self, raw: Json) -> set[Key]:
        meta: Json = raw.get("metadata") or {}
        fleet = (meta.get("labels") or {}).get(names.LABEL_FLEET)
        return {Key(str(meta.get("namespace") or ""), str(fleet))} if fleet else set()

    def _bury(self, uid: str) -> None:
        if not uid:
            return
        self._gone[uid] = None
        while len(self._gone) > GONE_MAX:
            self._gone.popitem(last=False)


def _fleet_record(raw: Json, before: FleetRecord | None = None) -> FleetRecord:
    """`before`: what was known of this name; when only the status is new, its parsed spec is taken over."""
    meta: Json = raw.get("metadata") or {}
    uid, version = str(meta.get("uid") or ""), version_of(raw)
    try:
        known = before.parsed if before is not None and _same_but_status(before.raw, raw) else None
        resource = known[0] if isinstance(known, tuple) else MoEFleet.parse({**raw, "status": {}})
        status = raw.get("status")
        return FleetRecord(
            raw, uid, version, (resource, fleet_of(resource, status if isinstance(status, Mapping) else {}))
        )
    except (ValidationError, ValueError) as error:
        return FleetRecord(raw, uid, version, Problem(reasons.SPEC_INVALID, _explain(error)))


def _explain(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']} ({error.error_count()} problems)"
    return str(error)


def _same_but_status(a: Json, b: Json) -> bool:
    """Also but for the resourceVersion, which changes with the status."""
    return _without_status(a) == _without_status(b)


def _without_status(raw: Json) -> dict[str, Any]:
    meta: Json = raw.get("metadata") or {}
    kept = {k: v for k, v in raw.items() if k not in ("status", "metadata")}
    kept["metadata"] = {k: v for k, v in meta.items() if k != "resourceVersion"}
    return kept


def _same_room(a: NodeFacts, b: NodeFacts) -> bool:
    return (a.labels, a.allocatable, a.taints, a.open, a.cordoned, a.unready_since) == (
        b.labels,
        b.allocatable,
        b.taints,
        b.open,
        b.cordoned,
        b.unready_since,
    )


def _discard(index: dict[Any, set[Key]], at: Any, key: Key) -> None:
    found = index.get(at)
    if found is None:
        return
    found.discard(key)
    if not found:
        del index[at]


def status_of(raw: Json) -> Json:
    status = raw.get("status")
    return status if isinstance(status, Mapping) else {}
