"""Watch events go from kopf's queues straight to our handlers.

Around each event kopf builds a body view, a patch, three loggers, causes, diffs and the state of handlers. Nothing of it is
looked at here, and with a thousand replicas starting it was half of what watching cost. There is no public way around it,
so its one function for an event is replaced for our registries, as long as it is the function that we know; otherwise, and
for everybody else's registries, kopf does as always and the result is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final

import kopf
from kopf._core.reactor import processing

# What is taken of an event, by the names under which kopf passes it.
_KNOWN: Final = {"registry", "resource", "raw_event", "resource_indexed", "operator_indexed"}

# Group, version, plural.
Where = tuple[str, str, str]
Forward = Callable[[Any], None]


class ForwardingRegistry(kopf.OperatorRegistry):
    """Knows besides kopf's handlers who wants the events of a resource as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards: dict[Where, list[Forward]] = {}


def _shortened(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def process_resource_event(*args: Any, **kwargs: Any) -> Any:
        registry = kwargs.get("registry")
        if args or not isinstance(registry, ForwardingRegistry):
            return await original(*args, **kwargs)
        resource = kwargs["resource"]
        for forward in registry.forwards.get((resource.group, resource.version, resource.plural), ()):
            forward(kwargs["raw_event"])
        # kopf counts the objects of the first LIST that are not handled yet; they must not pile up.
        resource_indexed, operator_indexed = kwargs.get("resource_indexed"), kwargs.get("operator_indexed")
        if resource_indexed is not None and operator_indexed is not None:
            await operator_indexed.drop_toggle(resource_indexed)
        return None

    return process_resource_event


def install() -> bool:
    """Once a process; whether events take the short way from here on."""
    original: Any = getattr(processing, "process_resource_event", None)
    if original is None or not inspect.iscoroutinefunction(original):
        return False
    if getattr(original, "moefleet", False):
        return True
    if not set(inspect.signature(original).parameters) >= _KNOWN:
        return False
    short: Any = _shortened(original)
    short.moefleet = True
    processing.process_resource_event = short
    return True
