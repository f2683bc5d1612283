"""The API server's objects: resourceVersions, optimistic locking, graceful deletion, garbage collection, a backup."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moefleet_operator.core.effects import (
    Apply,
    CreatePod,
    DeletePod,
    DeleteRevision,
    Effect,
    EmitEvent,
    PatchPod,
    PatchPodConditions,
    PatchRevision,
    ReadLease,
    WriteLease,
)
from moefleet_operator.core.events import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Invalid,
    Key,
    Kind,
    NotFound,
    Ok,
    Outcome,
)
from moefleet_operator.planning.timestamps import rfc3339

from .world import World

Object = dict[str, Any]
Hook = Callable[[Kind, Key, Object | None, Object | None], None]

FOREGROUND = "foregroundDeletion"
_LEAVES = frozenset({str, int, float, bool, type(None)})
_LISTS = (list, tuple)
# What operators ask of the Lease.
LEASE_EFFECTS = (ReadLease, WriteLease)


class Api:
    """Objects are replaced, never changed in place, so whoever got one keeps what he saw."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[str, dict[Key, Object]] = {}
        self.version = 100
        self.uids = 0
        self.writes = 0
        self.events: list[EmitEvent] = []
        # Called with (kind, key, before, after) at once, in the order of writes.
        self.hooks: list[Hook] = []
        # Pods that may be made in all, by quota; None: no quota.
        self.quota: int | None = None
        self._pod_keys: dict[str, Key] = {}
        self._backup: dict[str, dict[Key, Object]] = {}
        self._rng = world.stream("api")

    # --- reading ----------------------------------------------------------------------------------------------

    def get(self, kind: str, key: Key) -> Object | None:
        return self.objects.get(kind, {}).get(key)

    def all(self, kind: str) -> list[Object]:
        return list(self.objects.get(kind, {}).values())

    def pods_of(self, fleet_uid: str) -> list[Object]:
        return [p for p in self.objects.get("Pod", {}).values() if owner_of(p) == fleet_uid]

    def pod(self, uid: str) -> Object | None:
        key = self._pod_keys.get(uid)
        pod = self.get("Pod", key) if key is not None else None
        return pod if pod is not None and pod["metadata"]["uid"] == uid else None

    def fleet(self, uid: str) -> Object | None:
        return next((f for f in self.objects.get("MoEFleet", {}).values() if uid_of(f) == uid), None)

    # --- writing ----------------------------------------------------------------------------------------------

    def create(self, kind: str, body: Mapping[str, Any]) -> Object | None:
        """None: the name is taken."""
        made: Object = copied(body)
        meta = made.setdefault("metadata", {})
        key = Key(meta.get("namespace", ""), meta["name"])
        if self.get(kind, key) is not None:
            return None
        self.uids += 1
        meta["uid"] = f"uid-{self.uids}"
        meta["creationTimestamp"] = rfc3339(self.world.wall)
        meta.setdefault("generation", 1)
        if kind == "Pod":
            made.setdefault("status", {"phase": "Pending", "conditions": []})
            self._pod_keys[meta["uid"]] = key
        self._store(kind, key, made)
        # The garbage collector looks at new objects, too: an owner that is gone means deletion.
        if (owner := owner_of(made)) and self.fleet(owner) is None:
            self.world.after(1.0, lambda: self.collect(owner))
        return made

    def update(self, kind: str, key: Key, change: Callable[[Object], None]) -> Object | None:
        """`change` gets a copy of metadata and status that it may change; of anything else it sets a new value."""
        before = self.get(kind, key)
        if before is None:
            return None
        after = dict(before)
        after["metadata"] = copied(before["metadata"])
        if "status" in before:
            after["status"] = copied(before["status"])
        change(after)
        if after == before:
            return before
        if kind == "MoEFleet" and after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] = before["metadata"]["generation"] + 1
        self._store(kind, key, after)
        return after

    def remove(self, kind: str, key: Key) -> None:
        before = self.objects.get(kind, {}).pop(key, None)
        if before is None:
            return
        self.version += 1
        self._tell(kind, key, before, None)
        if kind == "MoEFleet":
            uid = uid_of(before)
            self.world.after(self._rng.uniform(0.05, 1.0), lambda: self.collect(uid))

    def delete_foreground(self, key: Key) -> None:
        """The fleet stays with a deletionTimestamp until its children are gone."""

        def mark(o: Object) -> None:
            o["metadata"].setdefault("deletionTimestamp", rfc3339(self.world.wall))
            o["metadata"]["finalizers"] = [FOREGROUND]

        fleet = self.update("MoEFleet", key, mark)
        if fleet is not None:
            self.world.after(
                self._rng.uniform(0.05, 1.0), lambda: self._finish_foreground(key, uid_of(fleet))
            )

    def _finish_foreground(self, key: Key, uid: str) -> None:
        fleet = self.get("MoEFleet", key)
        if fleet is None or uid_of(fleet) != uid:
            return
        self.collect(uid)
        if any(owner_of(o) == uid for found in self.objects.values() for o in found.values()):
            self.world.after(1.0, lambda: self._finish_foreground(key, uid))
        else:
            self.remove("MoEFleet", key)

    def delete_pod(self, key: Key, grace_s: int | None) -> Object | None:
        """Graceful: the kubelet removes it. One without a node is gone at once."""
        pod = self.get("Pod", key)
        if pod is None:
            return None
        grace = pod["spec"].get("terminationGracePeriodSeconds", 30) if grace_s is None else grace_s
        if (
            not pod["spec"].get("nodeName")
            or pod["status"].get("phase") in ("Failed", "Succeeded")
            or grace == 0
        ):
            self.remove("Pod", key)
            return {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": rfc3339(self.world.wall)}}

        def mark(o: Object) -> None:
            meta = o["metadata"]
            ends = self.world.wall + grace
            if "deletionTimestamp" not in meta or ends < meta["_ends"]:
                meta["deletionTimestamp"] = rfc3339(ends)
                meta["deletionGracePeriodSeconds"] = grace
                meta["_ends"] = ends

        return self.update("Pod", key, mark)

    def collect(self, owner_uid: str) -> None:
        """Garbage collection in the background."""
        for kind, found in list(self.objects.items()):
            for key, child in list(found.items()):
                if owner_of(child) == owner_uid:
                    if kind == "Pod":
                        self.delete_pod(key, None)
                    else:
                        self.remove(kind, key)

    # --- etcd -----------------------------------------------------------------------------------------------------

    def back_up(self) -> None:
        self._backup = {kind: dict(found) for kind, found in self.objects.items()}

    def restore(self, kinds: Iterable[str]) -> None:
        """These kinds are as they were at the backup. Revisions go on (etcdctl snapshot restore --bump-revision)."""
        for kind in kinds:
            now, then = self.objects.setdefault(kind, {}), self._backup.get(kind, {})
            for key in [k for k in now if k not in then]:
                before = now.pop(key)
                self.version += 1
                self._tell(kind, key, before, None)
            for key, old in then.items():
                if now.get(key) is old:
                    continue
                if kind == "Pod":
                    self._pod_keys[uid_of(old)] = key
                gone = now.get(key)
                if gone is not None and uid_of(gone) != uid_of(old):
                    del now[key]
                    self.version += 1
                    self._tell(kind, key, gone, None)
                self._store(kind, key, {**old, "metadata": dict(old["metadata"])})
        # Children of owners that the backup does not know.
        known = {uid_of(f) for f in self.all("MoEFleet")}
        for found in list(self.objects.values()):
            for child in list(found.values()):
                if (owner := owner_of(child)) and owner not in known:
                    self.world.after(1.0, lambda uid=owner: self.collect(uid))  # type: ignore[misc]

    # --- inside -----------------------------------------------------------------------------------------------------

    def _store(self, kind: str, key: Key, after: Object) -> None:
        self.version += 1
        found = self.objects.setdefault(kind, {})
        before = found.get(key)
        after["metadata"]["resourceVersion"] = str(self.version)
        found[key] = after
        self._tell(kind, key, before, after)

    def _tell(self, kind: str, key: Key, before: Object | None, after: Object | None) -> None:
        self.world.mark(f"{kind} {key} {self.version}")
        if kind == "Lease":
            # Nobody watches it.
            return
        for hook in self.hooks:
            hook(kind, key, before, after)  # type: ignore[arg-type]

    # --- effects ------------------------------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> Outcome:
        self.writes += not isinstance(effect, LEASE_EFFECTS)
        match effect:
            # Most requests are about the Lease.
            case ReadLease():
                lease = self.get("Lease", effect.object)
                return NotFound() if lease is None else Ok(lease)
            case WriteLease():
                return self._write_lease(effect)
            case CreatePod():
                return self._create_pod(effect)
            case PatchPodConditions():
                return self._patch_pod(
                    effect.object, effect.uid, lambda o: _merge_conditions(o, effect.body())
                )
            case PatchPod():
                return self._patch_pod(effect.object, effect.uid, lambda o: _merge_metadata(o, effect.body))
            case DeletePod():
                return self._delete_pod(effect)
            case DeleteRevision():
                found = self.get("ControllerRevision", effect.object)
                if found is None or uid_of(found) != effect.uid:
                    return NotFound()
                self.remove("ControllerRevision", effect.object)
                return Ok(None)
            case PatchRevision():
                return self._patch_revision(effect)
            case Apply():
                return self._apply(effect)
            case EmitEvent():
                self.events.append(effect)
                return Ok(None)
            case _:
                raise TypeError(f"the API server does not know {type(effect).__name__}")

    def _create_pod(self, effect: CreatePod) -> Outcome:
        if "forbidden" in str(effect.body["spec"]["containers"][0]["image"]):
            return Invalid('pods "x" is forbidden: violates PodSecurity "restricted:latest"')
        if self.quota is not None and len(self.objects.get("Pod", {})) >= self.quota:
            return Forbidden(
                f'pods "x" is forbidden: exceeded quota: gpus, requested: requests.nvidia.com/gpu=8, '
                f"used: requests.nvidia.com/gpu={self.quota * 8}, limited: requests.nvidia.com/gpu={self.quota * 8}"
            )
        made = self.create("Pod", effect.body)
        if made is None:
            return AlreadyExists(self.get("Pod", effect.object))
        return Ok(made)

    def _patch_pod(self, key: Key, uid: str, change: Callable[[Object], None]) -> Outcome:
        pod = self.get("Pod", key)
        if pod is None:
            return NotFound()
        if uid_of(pod) != uid:
            return Conflict("the uid differs")
        return Ok(self.update("Pod", key, change))

    def _patch_revision(self, effect: PatchRevision) -> Outcome:
        found = self.get("ControllerRevision", effect.object)
        if found is None:
            return NotFound()
        if uid_of(found) != effect.uid:
            return Conflict("the uid differs")

        def merge(o: Object) -> None:
            o["revision"] = effect.body["revision"]
            for part in ("labels", "annotations"):
                merged = {**o["metadata"].get(part, {}), **effect.body["metadata"].get(part, {})}
                o["metadata"][part] = {k: v for k, v in merged.items() if v is not None}

        return Ok(self.update("ControllerRevision", effect.object, merge))

    def _delete_pod(self, effect: DeletePod) -> Outcome:
        pod = self.get("Pod", effect.object)
        if pod is None or uid_of(pod) != effect.uid:
            return NotFound()
        return Ok(self.delete_pod(effect.object, effect.grace_s))

    def _apply(self, effect: Apply) -> Outcome:
        kind = str(effect.body["kind"])
        key = Key(effect.body["metadata"]["namespace"], effect.body["metadata"]["name"])
        found = self.get(kind, key)
        if effect.subresource == "status":
            if found is None:
                return NotFound()
            if uid_of(found) != effect.body["metadata"]["uid"]:
                return Conflict("the uid differs")

            def write(o: Object) -> None:
                o["status"] = copied(effect.body["status"])

            return Ok(self.update(kind, key, write))
        if found is None:
            return Ok(self.create(kind, effect.body))
        if effect.create:
            return AlreadyExists(found)

        if kind == "ControllerRevision" and effect.body.get("data", found["data"]) != found["data"]:
            return Invalid("data: Forbidden: field is immutable")

        def merge(o: Object) -> None:
            for name, value in effect.body.items():
                if name == "metadata":
                    o["metadata"].update(copied(value))
                else:
                    o[name] = copied(value)

        return Ok(self.update(kind, key, merge))

    def _write_lease(self, effect: WriteLease) -> Outcome:
        found = self.get("Lease", effect.object)
        wanted = effect.body["metadata"].get("resourceVersion")
        if wanted is None:
            made = self.create("Lease", effect.body)
            return AlreadyExists(found) if made is None else Ok(made)
        if found is None:
            return NotFound()
        if found["metadata"]["resourceVersion"] != wanted:
            return Conflict("resourceVersion differs")

        after = {**found, "metadata": dict(found["metadata"]), "spec": copied(effect.body["spec"])}
        self._store("Lease", effect.object, after)
        return Ok(after)


def copied(value: Any) -> Any:
    """A deep copy of JSON; many times faster than copy.deepcopy, which has to expect anything."""
    if isinstance(value, dict):
        return {k: v if type(v) in _LEAVES else copied(v) for k, v in value.items()}
    if isinstance(value, _LISTS):
        return [v if type(v) in _LEAVES else copied(v) for v in value]
    return value


def uid_of(found: Mapping[str, Any]) -> str:
    return str(found["metadata"]["uid"])


def key_of(found: Mapping[str, Any]) -> Key:
    return Key(found["metadata"].get("namespace", ""), found["metadata"]["name"])


def owner_of(found: Mapping[str, Any]) -> str:
    for owner in found["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner["uid"])
    return ""


def set_condition(
    pod: Object, type_: str, status: str, wall: float, *, reason: str = "", message: str = ""
) -> None:
    """As the kubelet writes it: the transition time changes with the status only."""
    conditions = pod["status"].setdefault("conditions", [])
    for found in conditions:
        if found["type"] == type_:
            if found["status"] != status:
                found["lastTransitionTime"] = rfc3339(wall)
            found.update(status=status, reason=reason, message=message)
            return
    conditions.append(
        {
            "type": type_,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(wall),
        }
    )


def condition(found: Mapping[str, Any], type_: str) -> dict[str, Any]:
    return next((c for c in (found.get("status") or {}).get("conditions") or () if c["type"] == type_), {})


def is_true(pod: Mapping[str, Any], type_: str) -> bool:
    for c in pod["status"].get("conditions") or ():
        if c["type"] == type_:
            return bool(c["status"] == "True")
    return False


def _merge_conditions(pod: Object, patch: Mapping[str, Any]) -> None:
    conditions = pod["status"].setdefault("conditions", [])
    for new in patch["status"]["conditions"]:
        found = next((c for c in conditions if c["type"] == new["type"]), None)
        if found is None:
            conditions.append(dict(new))
        else:
            found.update(new)


def _merge_metadata(pod: Object, patch: Mapping[str, Any]) -> None:
    for name, value in patch["metadata"].items():
        if isinstance(value, Mapping):
            pod["metadata"].setdefault(name, {}).update(value)
        else:
            pod["metadata"][name] = copied(value)
