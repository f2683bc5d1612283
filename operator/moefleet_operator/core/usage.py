"""What pods take of nodes, kept up to date pod by pod: free GPUs are needed in every plan that creates something."""

from __future__ import annotations

from collections.abc import Mapping

from .events import Key

Vector = Mapping[str, int]


class Usage:
    def __init__(self) -> None:
        # Changes with everything below.
        self.version = 0
        self._pods: dict[Key, tuple[str, Vector]] = {}
        self._by_node: dict[str, dict[str, int]] = {}
        # Pods without a node yet.
        self._waiting: dict[Key, Vector] = {}

    def set(self, key: Key, node: str, requests: Vector, holds: bool) -> None:
        """`holds` is False for a pod that has ended: it has a name and takes no room."""
        if holds and self._pods.get(key) == (node, requests):
            return
        self.remove(key)
        if not holds:
            return
        self.version += 1
        self._pods[key] = (node, requests)
        if not node:
            self._waiting[key] = requests
            return
        total = self._by_node.setdefault(node, {})
        for name, amount in requests.items():
            total[name] = total.get(name, 0) + amount

    def remove(self, key: Key) -> None:
        if key not in self._pods:
            return
        self.version += 1
        node, requests = self._pods.pop(key)
        self._waiting.pop(key, None)
        total = self._by_node.get(node)
        if total is None:
            return
        for name, amount in requests.items():
            total[name] = total.get(name, 0) - amount
        if not any(total.values()):
            del self._by_node[node]

    def by_node(self) -> Mapping[str, Vector]:
        return self._by_node

    def waiting(self, requests: Vector) -> int:
        """Pods in the scheduler's queue, counted in pods like this one: each takes at least the room of one."""
        scarce = [name for name in requests if "/" in name]
        if not scarce:
            return len(self._waiting)
        name = scarce[0]
        asked = sum(found.get(name, 0) for found in self._waiting.values())
        return -(-asked // requests[name]) if requests[name] else 0
