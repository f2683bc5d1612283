"""The API server: objects with resourceVersions, optimistic locking, graceful deletion, garbage collection, late watches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
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


class Api:
    """Objects are replaced, never changed in place, so whoever got one keeps what he saw."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[tuple[str, Key], Object] = {}
        self.version = 100
        self.uids = 0
        self.writes = 0
        self.events: list[EmitEvent] = []
        # Called with (kind, key, before, after) at once, in the order of writes.
        self.hooks: list[Hook] = []

    # --- reading ----------------------------------------------------------------------------------------------

    def get(self, kind: str, key: Key) -> Object | None:
        return self.objects.get((kind, key))

    def all(self, kind: str) -> list[Object]:
        return [o for (k, _), o in self.objects.items() if k == kind]

    def pods_of(self, fleet_uid: str) -> list[Object]:
        return [p for p in self.all("Pod") if _owner_uid(p) == fleet_uid]

    # --- writing ----------------------------------------------------------------------------------------------

    def create(self, kind: Kind, body: Mapping[str, Any]) -> Object | None:
        """None: the name is taken."""
        made = copy.deepcopy(dict(body))
        meta = made.setdefault("metadata", {})
        key = Key(meta.get("namespace", ""), meta["name"])
        if (kind, key) in self.objects:
            return None
        self.uids += 1
        meta["uid"] = f"uid-{self.uids}"
        meta["creationTimestamp"] = rfc3339(self.world.wall)
        meta.setdefault("generation", 1)
        if kind == "Pod":
            made.setdefault("status", {"phase": "Pending", "conditions": []})
        self._store(kind, key, made)
        return made

    def update(self, kind: Kind, key: Key, change: Callable[[Object], None]) -> Object | None:
        before = self.objects.get((kind, key))
        if before is None:
            return None
        after = copy.deepcopy(before)
        change(after)
        if after == before:
            return before
        if after.get("spec") != before.get("spec") and kind == "MoEFleet":
            after["metadata"]["generation"] = before["metadata"]["generation"] + 1
        self._store(kind, key, after)
        return after

    def remove(self, kind: Kind, key: Key) -> None:
        before = self.objects.pop((kind, key), None)
        if before is None:
            return
        self.version += 1
        for hook in self.hooks:
            hook(kind, key, before, None)
        if kind == "MoEFleet":
            self.world.after(self.world.between(0.05, 1.0), lambda: self._collect(before["metadata"]["uid"]))

    def delete_pod(self, key: Key, grace_s: int | None) -> Object | None:
        """Graceful: the kubelet removes it. One without a node is gone at once."""
        pod = self.objects.get(("Pod", key))
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

    def _store(self, kind: Kind, key: Key, after: Object) -> None:
        self.version += 1
        before = self.objects.get((kind, key))
        after["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind, key] = after
        for hook in self.hooks:
            hook(kind, key, before, after)

    def _collect(self, owner_uid: str) -> None:
        """Garbage collection in the background."""
        for (kind, key), found in list(self.objects.items()):
            if _owner_uid(found) != owner_uid:
                continue
            if kind == "Pod":
                self.delete_pod(key, None)
            else:
                self.remove(kind, key)  # type: ignore[arg-type]

    # --- effects ------------------------------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> Outcome:
        self.writes += not isinstance(effect, ReadLease | WriteLease)
        match effect:
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
            case PatchRevision():
                return self._patch_revision(effect)
            case DeleteRevision():
                return self._delete_revision(effect)
            case Apply():
                return self._apply(effect)
            case EmitEvent():
                self.events.append(effect)
                return Ok(None)
            case ReadLease():
                lease = self.get("Lease", effect.object)
                return NotFound() if lease is None else Ok(lease)
            case WriteLease():
                return self._write_lease(effect)
            case _:
                raise TypeError(f"the API server does not know {type(effect).__name__}")

    def _create_pod(self, effect: CreatePod) -> Outcome:
        owner = _owner_uid(effect.body)
        if "forbidden" in str(effect.body["spec"]["containers"][0]["image"]):
            return Invalid('pods "x" is forbidden: violates PodSecurity "restricted:latest"')
        made = self.create("Pod", effect.body)
        if made is None:
            return AlreadyExists(self.get("Pod", effect.object))
        # The garbage collector looks at new objects, too: an owner that is gone means deletion.
        if not any(f["metadata"]["uid"] == owner for f in self.all("MoEFleet")):
            self.world.after(1.0, lambda: self._collect(owner))
        return Ok(made)

    def _patch_pod(self, key: Key, uid: str, change: Callable[[Object], None]) -> Outcome:
        pod = self.get("Pod", key)
        if pod is None:
            return NotFound()
        if pod["metadata"]["uid"] != uid:
            return Conflict("the uid differs")
        return Ok(self.update("Pod", key, change))

    def _delete_pod(self, effect: DeletePod) -> Outcome:
        pod = self.get("Pod", effect.object)
        if pod is None or pod["metadata"]["uid"] != effect.uid:
            return NotFound()
        return Ok(self.delete_pod(effect.object, effect.grace_s))

    def _patch_revision(self, effect: PatchRevision) -> Outcome:
        found = self.get("ControllerRevision", effect.object)
        if found is None:
            return NotFound()
        if found["metadata"]["uid"] != effect.uid:
            return Conflict("the uid differs")

        def merge(o: Object) -> None:
            o["revision"] = effect.body["revision"]
            for part in ("labels", "annotations"):
                merged = {**o["metadata"].get(part, {}), **effect.body["metadata"][part]}
                o["metadata"][part] = {k: v for k, v in merged.items() if v is not None}

        return Ok(self.update("ControllerRevision", effect.object, merge))

    def _delete_revision(self, effect: DeleteRevision) -> Outcome:
        found = self.get("ControllerRevision", effect.object)
        if found is None or found["metadata"]["uid"] != effect.uid:
            return NotFound()
        self.remove("ControllerRevision", effect.object)
        return Ok(None)

    def _apply(self, effect: Apply) -> Outcome:
        kind: Kind = effect.body["kind"]
        key = Key(effect.body["metadata"]["namespace"], effect.body["metadata"]["name"])
        found = self.get(kind, key)
        if effect.subresource == "status":
            if found is None:
                return NotFound()
            if found["metadata"]["uid"] != effect.body["metadata"]["uid"]:
                return Conflict("the uid differs")

            def write(o: Object) -> None:
                o["status"] = copy.deepcopy(effect.body["status"])

            return Ok(self.update(kind, key, write))
        if found is None:
            return Ok(self.create(kind, effect.body))
        if effect.create:
            return AlreadyExists(found)

        def merge(o: Object) -> None:
            o["spec"] = copy.deepcopy(effect.body["spec"])
            o["metadata"].update(copy.deepcopy(effect.body["metadata"]))

        return Ok(self.update(kind, key, merge))

    def _write_lease(self, effect: WriteLease) -> Outcome:
        found = self.get("Lease", effect.object)
        wanted = effect.body["metadata"].get("resourceVersion")
        if wanted is None:
            made = self.create("Lease", effect.body)  # type: ignore[arg-type]
            return AlreadyExists(found) if made is None else Ok(made)
        if found is None:
            return NotFound()
        if found["metadata"]["resourceVersion"] != wanted:
            return Conflict("resourceVersion differs")

        def write(o: Object) -> None:
            o["spec"] = copy.deepcopy(effect.body["spec"])

        return Ok(self.update("Lease", effect.object, write))  # type: ignore[arg-type]


def _owner_uid(found: Mapping[str, Any]) -> str:
    owners = found["metadata"].get("ownerReferences") or ()
    return next((str(o["uid"]) for o in owners if o.get("controller")), "")


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


def is_true(pod: Mapping[str, Any], type_: str) -> bool:
    return any(c["type"] == type_ and c["status"] == "True" for c in pod["status"].get("conditions") or ())


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
            pod["metadata"][name] = copy.deepcopy(value)
