"""`moefleet history` and `moefleet undo`: a fleet's revisions with how each went, and the way back to one of them.

The operator keeps revisions as ControllerRevisions and never writes a spec; `undo` writes it for the user who asks, so a
fleet that Git owns is put right in Git instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from moefleet_operator.planning.history import PARTS, changes, history_of, last_good
from moefleet_operator.planning.revisions import PastRevision
from rich.table import Table

from .exits import Exit
from .fleets import Cluster
from .options import InputError, Output, OutputOption, console

NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")
]
KubeconfigOption = Annotated[str | None, typer.Option(help="Default: as kubectl.")]
ContextOption = Annotated[str | None, typer.Option(help="Context of the kubeconfig.")]


@dataclass(frozen=True, slots=True)
class Undo:
    """What an undo would change."""

    before: str
    to: PastRevision
    # Merge patch of the spec.
    patch: Mapping[str, Any]


def history_command(
    fleet: Annotated[str, typer.Argument(help="Name of the fleet.")],
    *,
    namespace: NamespaceOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """List a fleet's revisions, newest first: which is wanted, which proved themselves, which were refused and why."""
    cluster = Cluster(kubeconfig, context)
    where = namespace or cluster.namespace
    body = cluster.fleet(where, fleet)
    found = newest_first(cluster.revisions(where, fleet), body)
    if output is Output.JSON:
        print(json.dumps([revision_json(r, wanted(body)) for r in found]))
        return
    if not found:
        raise InputError(f"{fleet}: no revision is kept yet; is the operator running?", Exit.FAILED)
    console().print(history_table(found, wanted(body)))


def undo_command(
    fleet: Annotated[str, typer.Argument(help="Name of the fleet.")],
    *,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="REVISION",
            help="A revision or its number, as `moefleet history` lists them. Default: the last good one.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask the API server, and change nothing.")
    ] = False,
    namespace: NamespaceOption = None,
    kubeconfig: KubeconfigOption = None,
    context: ContextOption = None,
    output: OutputOption = Output.TEXT,
) -> None:
    """Put model, engine and replica of the spec back to what they were in an earlier revision.

    Refused (exit code 1) when somebody else changes the fleet at the same time. What Git owns, Git brings back: change it there.
    """
    cluster = Cluster(kubeconfig, context)
    where = namespace or cluster.namespace
    body = cluster.fleet(where, fleet)
    found = undo(body, newest_first(cluster.revisions(where, fleet), body), to)
    if found.patch:
        version = str((body.get("metadata") or {}).get("resourceVersion") or "")
        patch = {"metadata": {"resourceVersion": version}, "spec": dict(found.patch)}
        cluster.patch_fleet(where, fleet, patch, dry_run=dry_run)
    if output is Output.JSON:
        document = {"fleet": fleet, "namespace": where, "from": found.before, "to": found.to.revision}
        print(json.dumps({**document, "patch": found.patch, "dryRun": dry_run, "changed": bool(found.patch) and not dry_run}))  # fmt: skip
        return
    for line in difference(body.get("spec") or {}, found.patch):
        print(line)
    print(told(f"{where}/{fleet}", found, dry_run))


def newest_first(raw: Sequence[Mapping[str, Any]], body: Mapping[str, Any]) -> list[PastRevision]:
    """Those of this very fleet; one of the same name before it had others."""
    return list(reversed(history_of(raw, str((body.get("metadata") or {}).get("uid") or ""))))


def wanted(body: Mapping[str, Any]) -> str:
    """The revision of the spec, as the operator last saw it."""
    return str((body.get("status") or {}).get("revision") or "")


def undo(body: Mapping[str, Any], history: Sequence[PastRevision], to: str | None) -> Undo:
    """Raises InputError. `history`: newest first."""
    name = (body.get("metadata") or {}).get("name")
    before = wanted(body)
    if to is None:
        target = last_good(history, before)
        if target is None:
            raise InputError(f"{name}: no earlier revision has proved itself; `--to` names any other", Exit.FAILED)  # fmt: skip
    else:
        fitting = [r for r in history if r.revision == to or str(r.number) == to]
        if not fitting:
            known = ", ".join(f"{r.number} ({r.revision})" for r in history) or "none"
            raise InputError(f"to: wanted a revision of {name}, found {to!r}; there are {known}")
        target = fitting[0]
    if not target.spec:
        raise InputError(f"{name}: revision {target.revision} cannot be read by this release", Exit.FAILED)
    spec = body.get("spec") or {}
    current = {part: spec[part] for part in PARTS if part in spec}
    return Undo(before, target, changes(current, target.spec))


def told(name: str, found: Undo, dry_run: bool) -> str:
    target = f"revision {found.to.revision} (number {found.to.number})"
    if not found.patch:
        return f"{name} already asks for {target}: nothing to change"
    if dry_run:
        return f"{name} would go from revision {found.before or '(unknown)'} to {target}: nothing was changed"
    return f"{name} goes from revision {found.before or '(unknown)'} to {target}"


def difference(spec: Mapping[str, Any], patch: Mapping[str, Any], path: str = "spec") -> Iterator[str]:
    """`- path: old` and `+ path: new`, field by field."""
    for key, value in patch.items():
        at, old = f"{path}.{key}", spec.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            yield from difference(old, value, at)
            continue
        if old is not None:
            yield f"- {at}: {json.dumps(old)}"
        if value is not None:
            yield f"+ {at}: {json.dumps(value)}"


def revision_json(past: PastRevision, current: str) -> dict[str, Any]:
    return {
        "number": past.number, "revision": past.revision, "verdict": past.verdict or "undecided", "reason": past.reason,
        "message": past.message, "wanted": past.revision == current, "spec": dict(past.spec),
    }  # fmt: skip


def history_table(found: Sequence[PastRevision], current: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for head in ("NUMBER", "REVISION", "VERDICT", "IMAGE", "MODEL", "WHY"):
        table.add_column(head, overflow="fold", no_wrap=head != "WHY")
    for past in found:
        engine, model = past.spec.get("engine") or {}, past.spec.get("model") or {}
        table.add_row(
            f"{past.number}{' *' if past.revision == current else ''}",
            past.revision,
            past.verdict or "undecided",
            str(engine.get("image") or "?"),
            str(model.get("source") or "?"),
            f"{past.reason}: {past.message}".rstrip(": "),
        )
    table.caption = "* is what the spec asks for"
    return table
