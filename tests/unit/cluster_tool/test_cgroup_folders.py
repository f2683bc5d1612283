"""Cgroup folders of ended clusters go; those of running ones stay. On a folder that stands in for /sys/fs/cgroup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from moefleet_cluster import cgroups

NOBODY = 2**22 + 1  # above the kernel's largest process id


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    for controller in ("memory", "cpu", "unified"):
        (tmp_path / controller).mkdir()
    (tmp_path / "cpuset").mkdir()
    (tmp_path / "cpuset/cpuset.cpus").write_text("0-1\n")
    (tmp_path / "cpuset/cpuset.mems").write_text("0\n")
    return tmp_path


def test_a_folder_is_made_in_each_controller_and_removed_with_all_below(hierarchy: Path) -> None:
    cgroups.make("moefleet-7-node0")
    assert (hierarchy / "cpuset/moefleet-7-node0/cpuset.cpus").read_text() == "0-1\n"
    assert not (hierarchy / "unified/moefleet-7-node0").exists()
    for file in (hierarchy / "cpuset/moefleet-7-node0").iterdir():
        file.unlink()  # in a real cgroup the files are the kernel's and go with the folder
    (hierarchy / "memory/moefleet-7-node0/kubepods/pod1").mkdir(parents=True)
    (hierarchy / "unified/moefleet-7-node0").mkdir()
    assert cgroups.exists("moefleet-7")
    cgroups.remove("moefleet-7")
    assert not cgroups.exists("moefleet-7")


def test_leftovers_of_the_dead_go_and_the_living_keep_theirs(hierarchy: Path) -> None:
    alive, dead = f"moefleet-{os.getpid()}-node0", f"moefleet-{NOBODY}-node0"
    for name in (alive, dead, "moefleet-other"):
        (hierarchy / "memory" / name).mkdir()
    cgroups.remove_leftovers()
    assert sorted(p.name for p in (hierarchy / "memory").iterdir()) == sorted([alive, "moefleet-other"])
