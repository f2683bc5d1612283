"""The folders under /sys/fs/cgroup that hold a node's pods: made before the kubelet starts, removed after everything ended."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PREFIX = "moefleet"
_V2_CONTROLLERS = "+cpu +cpuset +io +memory +pids"


def is_v1() -> bool:
    return not (ROOT / "cgroup.controllers").exists()


def name_of(pid: int) -> str:
    """The name of a cluster whose outermost process is `pid`."""
    return f"{PREFIX}-{pid}"


def make(name: str) -> None:
    """The kubelet wants its root to exist in every hierarchy."""
    if not is_v1():
        with contextlib.suppress(
            OSError
        ):  # refused where somebody else manages the root; the kubelet says what it misses
            (ROOT / "cgroup.subtree_control").write_text(_V2_CONTROLLERS)
    for hierarchy in _hierarchies():
        if hierarchy.name == "unified":  # beside version 1 it holds no controllers; runc makes what it wants
            continue
        (hierarchy / name).mkdir(exist_ok=True)
        if hierarchy.name == "cpuset" and is_v1():
            # A cpuset starts empty, and nothing can run in an empty one.
            for file in ("cpuset.cpus", "cpuset.mems"):
                (hierarchy / name / file).write_text((hierarchy / file).read_text())


def remove(prefix: str) -> None:
    """Removes the folders `<prefix>-*`, from the leaves up; they are empty of processes once the pid namespace is gone."""
    for hierarchy in _hierarchies():
        for top in hierarchy.glob(f"{prefix}-*"):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()


def exists(prefix: str) -> bool:
    return any(any(hierarchy.glob(f"{prefix}-*")) for hierarchy in _hierarchies())


def remove_leftovers() -> None:
    """Folders of clusters whose outermost process was killed before it could tidy up."""
    for hierarchy in _hierarchies():
        for top in hierarchy.glob(f"{PREFIX}-*"):
            found = re.match(rf"{PREFIX}-(\d+)-", top.name)
            if found and not Path(f"/proc/{found[1]}").exists():
                remove(f"{PREFIX}-{found[1]}")


def _hierarchies() -> list[Path]:
    if not is_v1():
        return [ROOT]
    return [p for p in ROOT.iterdir() if p.is_dir() and not p.is_symlink()]
