"""Reads that somebody waits for: LISTs and access reviews, tried again on 429, 5xx and broken connections."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from .clock import Clock
from .limits import LIST_PAGE_OBJECTS, LIST_TIMEOUT_S, READ_ATTEMPTS, READ_BACKOFF_FIRST_S
from .outcomes import error_text
from .resources import Resource
from .wire import NoAnswerError, NotConnectedError, Request, Response, Transport


class RefusedError(Exception):
    """The API server answered, and trying again would not help. `status` says why: 403, 404, 410."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(Exception):
    """All attempts failed: the API server is away or overloaded."""


def waits_s(attempts: int = READ_ATTEMPTS, first_s: float = READ_BACKOFF_FIRST_S) -> tuple[float, ...]:
    """Pauses between attempts, doubling."""
    return tuple(first_s * 2**n for n in range(attempts - 1))


def worth_retrying(response: Response) -> bool:
    return response.status in (408, 429) or response.status >= 500


async def read(transport: Transport, clock: Clock, request: Request) -> Response:
    """The answer to a request that may be repeated; raises RefusedError or UnreachableError."""
    problem = ""
    for pause_s in (*waits_s(), None):
        asked_s = 0.0
        try:
            response = await transport.send(request)
        except (NotConnectedError, NoAnswerError) as error:
            problem = str(error)
        else:
            if response.ok:
                return response
            if not worth_retrying(response):
                raise RefusedError(response.status, f"{request.verb} {request.path}: {error_text(response)}")
            problem, asked_s = error_text(response), response.retry_after_s or 0.0
        if pause_s is not None:
            await clock.sleep(max(pause_s, asked_s))
    raise UnreachableError(
        f"{request.verb} {request.path}: {READ_ATTEMPTS} attempts failed, the last with: {problem}"
    )


@dataclass(frozen=True, slots=True)
class Page:
    items: list[dict[str, Any]]
    # All pages of one LIST are as of this.
    resource_version: int


async def pages(
    transport: Transport, clock: Clock, resource: Resource, namespace: str, label_selector: str = ""
) -> AsyncIterator[Page]:
    """All objects, a page at a time, as of one resourceVersion; an expired list (410) raises RefusedError(410)."""
    token = ""
    while True:
        query = [("limit", str(LIST_PAGE_OBJECTS))]
        if label_selector:
            query.append(("labelSelector", label_selector))
        if token:
            query.append(("continue", token))
        response = await read(
            transport,
            clock,
            Request(verb="GET", path=resource.path(namespace), query=tuple(query), timeout_s=LIST_TIMEOUT_S),
        )
        metadata = response.body.get("metadata") or {}
        version = str(metadata.get("resourceVersion") or "")
        # Items of a list carry neither apiVersion nor kind; watch events do.
        yield Page(
            [
                {"apiVersion": resource.api_version, "kind": resource.kind, **slim(item)}
                for item in response.body.get("items") or ()
            ],
            int(version) if version.isdecimal() else 0,
        )
        token = str(metadata.get("continue") or "")
        if not token:
            return


async def discovered(transport: Transport, clock: Clock, resource: Resource) -> bool:
    """Whether the API server names this resource to those who ask what there is, as kopf does; raises as `read` does."""

    async def ask(path: str) -> dict[str, Any]:
        return (await read(transport, clock, Request(verb="GET", path=path, timeout_s=LIST_TIMEOUT_S))).body

    if resource.group:
        groups = (await ask("/apis")).get("groups") or ()
        versions = {
            v.get("version")
            for g in groups
            if g.get("name") == resource.group
            for v in g.get("versions") or ()
        }
        if resource.version not in versions:
            return False
    found = await ask(f"/apis/{resource.api_version}" if resource.group else f"/api/{resource.version}")
    return any(known.get("name") == resource.plural for known in found.get("resources") or ())


def slim(raw: dict[str, Any]) -> dict[str, Any]:
    """Without managedFields, which are half of a pod and which nothing here reads. The original stays as it is."""
    metadata = raw.get("metadata")
    if not isinstance(metadata, dict) or "managedFields" not in metadata:
        return raw
    return {**raw, "metadata": {k: v for k, v in metadata.items() if k != "managedFields"}}
