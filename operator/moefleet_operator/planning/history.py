"""The revisions of a fleet, as apps/v1 ControllerRevisions that it owns: what pods were made from, and how each went.

`data` (which nobody can change once it is written) is model, engine and replica of the spec as the user wrote them;
`revision` counts in which order they were wanted; a label is the verdict. The verdict's words are an annotation: people
read them, no decision does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from moefleet_operator import names
from moefleet_operator.api import MoEFleet
from moefleet_operator.api import conditions as reasons
from moefleet_operator.rendering.pod import owner_reference

from .children import controller_of
from .revisions import Opinion, PastRevision, Verdict
from .steps import ForgetRevision, RecordRevision

Json = Mapping[str, Any]

API_VERSION: Final = "apps/v1"
KIND: Final = "ControllerRevision"
# Like a Deployment's revisionHistoryLimit; each is 1 to 4 kB.
HISTORY_MAX: Final = 10
# The parts of a spec from which pods are made.
PARTS: Final = ("model", "engine", "replica")
# As a condition's message.
MESSAGE_MAX: Final = 1000


def past_revision(raw: Json) -> PastRevision | None:
    """None: it is none of ours, or of a release that we do not understand."""
    meta: Json = raw.get("metadata") or {}
    labels: Json = meta.get("labels") or {}
    revision = str(labels.get(names.LABEL_REVISION) or "")
    number, said = raw.get("revision"), str(labels.get(names.LABEL_VERDICT) or "")
    if not revision or not isinstance(number, int):
        return None
    data = raw.get("data") or {}
    spec = data.get("spec") if isinstance(data, Mapping) else None
    return PastRevision(
        name=str(meta.get("name") or ""),
        uid=str(meta.get("uid") or ""),
        revision=revision,
        number=number,
        verdict="good" if said == "good" else "refused" if said == "refused" else "",
        reason=str(labels.get(names.LABEL_VERDICT_REASON) or ""),
        message=str((meta.get("annotations") or {}).get(names.ANNOTATION_VERDICT_MESSAGE) or ""),
        spec=spec if isinstance(spec, Mapping) else {},
    )


def history_of(found: Iterable[Json], fleet_uid: str) -> tuple[PastRevision, ...]:
    """Those that this very fleet owns, oldest first."""
    ours = (past_revision(raw) for raw in found if controller_of(raw) == fleet_uid)
    return tuple(sorted((r for r in ours if r is not None), key=lambda r: (r.number, r.name)))


def entry_of(history: Sequence[PastRevision], revision: str | None) -> PastRevision | None:
    return next((r for r in history if r.revision == revision), None)


def verdict_of(history: Sequence[PastRevision], revision: str | None) -> Verdict:
    """A refusal holds while the spec stays: one who goes to another revision and comes back wants another try."""
    entry = entry_of(history, revision)
    if entry is None:
        return ""
    # They are in this order.
    newest = entry.number == history[-1].number
    return entry.verdict if newest or entry.verdict == "good" else ""


def last_good(history: Sequence[PastRevision], current: str | None) -> PastRevision | None:
    """The newest that proved itself, other than the one that the spec wants."""
    return max(
        (r for r in history if r.verdict == "good" and r.revision != current and r.spec),
        key=lambda r: r.number,
        default=None,
    )


def restored(raw: Json, past: PastRevision) -> MoEFleet:
    """The fleet as it is, but for the parts that pods are made from. Raises ValidationError when they are of another API."""
    spec: Json = raw.get("spec") or {}
    others = {key: value for key, value in spec.items() if key not in PARTS}
    return MoEFleet.parse({**raw, "spec": {**others, **past.spec}, "status": {}})


def keep(
    history: Sequence[PastRevision],
    resource: MoEFleet,
    spec: Json,
    current: str,
    found: Opinion,
    *,
    in_use: frozenset[str],
) -> list[RecordRevision | ForgetRevision]:
    """What has to be written so that the wanted revision is the newest and has this verdict, and the list stays bounded.

    `spec` is the raw one; `in_use`: revisions that must not be forgotten.
    """
    verdict, reason, message = found.verdict, found.reason, found.message
    entry = entry_of(history, current)
    newest = history[-1].number if history else 0
    number = newest if entry is not None and entry.number == newest else newest + 1
    steps: list[RecordRevision | ForgetRevision] = []
    if entry is None or (entry.number, entry.verdict) != (number, verdict):
        refused = verdict == "refused"
        marks: dict[str, Any] = {
            "labels": {
                names.LABEL_VERDICT: verdict or None,
                names.LABEL_VERDICT_REASON: reason if refused else None,
            },
            "annotations": {names.ANNOTATION_VERDICT_MESSAGE: message[:MESSAGE_MAX] if refused else None},
        }
        if entry is None:
            body = _new(resource, spec, current, number, marks)
        else:
            body = {"metadata": {"uid": entry.uid, **marks}, "revision": number}
        steps.append(
            RecordRevision(
                name=names.revision_name(resource.metadata.name, current),
                uid=entry.uid if entry is not None else "",
                reason=reason or reasons.REVISION_RECORDED,
                message=message
                or f"revision {current} is number {number}{' and proved itself' if verdict == 'good' else ''}",
                body=body,
            )
        )
    others = [r for r in history if r.revision != current and r.revision not in in_use]
    surplus = len({current, *(r.revision for r in history)}) - HISTORY_MAX
    for past in others[: max(0, surplus)]:
        steps.append(
            ForgetRevision(
                name=past.name,
                uid=past.uid,
                reason=reasons.REVISION_RECORDED,
                message=f"revision {past.revision} is number {past.number} of {number}, the newest {HISTORY_MAX} are kept",
            )
        )
    return steps


def _new(
    resource: MoEFleet, spec: Json, revision: str, number: int, marks: Mapping[str, Mapping[str, str | None]]
) -> dict[str, Any]:
    def told(part: str) -> dict[str, str]:
        return {name: value for name, value in marks[part].items() if value is not None}

    labels = {**names.child_labels(resource.metadata.name), names.LABEL_REVISION: revision, **told("labels")}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": names.revision_name(resource.metadata.name, revision),
            "namespace": resource.metadata.namespace,
            "labels": labels,
            "annotations": told("annotations"),
            "ownerReferences": [owner_reference(resource)],
        },
        "data": {"spec": {part: spec[part] for part in PARTS if part in spec}},
        "revision": number,
    }


def changes(current: Json, wanted: Json) -> dict[str, Any]:
    """The merge patch (RFC 7386) that makes `current` into `wanted`: what is not wanted any more becomes null."""
    patch: dict[str, Any] = {key: None for key in current if key not in wanted}
    for key, value in wanted.items():
        have = current.get(key)
        if isinstance(value, Mapping) and isinstance(have, Mapping):
            if found := changes(have, value):
                patch[key] = found
        elif key not in current or have != value:
            patch[key] = value
    return patch
