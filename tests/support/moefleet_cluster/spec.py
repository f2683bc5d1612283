"""What a cluster with real nodes should look like, passed as a file to the processes that make it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from .node_documents import MAX_NODES


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    """`gpus` are those of each node: one node of 24 holds three replicas of 8. `fake_nodes` are kwok's, of 8 GPUs each.

    `name` marks this cluster's cgroups; it holds the pid of the outermost process, so that leftovers of a dead one are known.
    `gpu_site` is the folder with torch that containers with GPUs get; empty: none. `seed` is a store (seed.py) that
    nodes start from before they import the archives. `quick_node_failure` is for tests that stop a kubelet: 10 s of silence fail a node.
    """

    name: str
    state: str
    programs: str
    archives: tuple[str, ...]
    nodes: int = 1
    gpus: int = 24
    gpu_site: str = ""
    seed: str = ""
    kwok: bool = False
    fake_nodes: int = 0
    audit: bool = False
    quick_node_failure: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= MAX_NODES:
            raise ValueError(f"{self.nodes} nodes: a cluster has 1 to {MAX_NODES} real nodes")
        if self.gpus < 0 or self.fake_nodes < 0:
            raise ValueError(
                f"{self.gpus} GPUs a node and {self.fake_nodes} fake nodes: neither can be negative"
            )

    @property
    def node_names(self) -> list[str]:
        return [f"node{i}" for i in range(self.nodes)]

    @property
    def folder(self) -> Path:
        return Path(self.state)

    def cgroup(self, node: str) -> str:
        return f"{self.name}-{node}"

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> Self:
        document = json.loads(path.read_text())
        return cls(**{**document, "archives": tuple(document["archives"])})
