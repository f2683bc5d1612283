"""Which fleet a name means. A model name belongs to the oldest fleet that claims it; `namespace/model` always works."""

from __future__ import annotations

from collections.abc import Iterable

from moefleet_gateway.picking.facts import Fleet


class ModelTable:
    """Built anew whenever fleets change; looking up is one dictionary access."""

    def __init__(self, fleets: Iterable[Fleet] = ()) -> None:
        self.by_key: dict[str, Fleet] = {}
        self._by_model: dict[str, Fleet] = {}
        qualified: dict[str, Fleet] = {}
        for fleet in sorted(fleets, key=lambda f: (f.created, f.uid)):
            self.by_key[fleet.key] = fleet
            self._by_model.setdefault(fleet.model, fleet)
            qualified.setdefault(fleet.qualified_model, fleet)
        self._names = tuple(sorted(self._by_model))
        # A fleet whose model is literally called "a/b" keeps that name: it is older or nobody else's.
        for name, fleet in qualified.items():
            self._by_model.setdefault(name, fleet)

    def find(self, model: str) -> Fleet | None:
        return self._by_model.get(model)

    def names(self) -> tuple[str, ...]:
        """The short names, sorted, for messages."""
        return self._names

    def listed(self) -> tuple[tuple[str, Fleet], ...]:
        """Every fleet once, under the shortest name that reaches it."""
        out = []
        for fleet in self.by_key.values():
            if self._by_model.get(fleet.model) is fleet:
                out.append((fleet.model, fleet))
            elif self._by_model.get(fleet.qualified_model) is fleet:
                out.append((fleet.qualified_model, fleet))
        return tuple(sorted(out, key=lambda pair: pair[0]))


def fleet_of_authority(authority: str) -> str:
    """`<fleet>.<namespace>[.anything][:port]` as a fleet key; empty when it has not that form."""
    host = authority.rsplit(":", 1)[0] if authority.rsplit(":", 1)[-1].isdigit() else authority
    parts = host.split(".")
    if len(parts) < 2 or not parts[0] or not parts[1]:
        return ""
    return f"{parts[1]}/{parts[0]}"
