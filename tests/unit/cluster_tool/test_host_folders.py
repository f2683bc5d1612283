"""Folders that clusters make on the host go with the last of them; those that were there, and those in use, stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from moefleet_cluster.host_folders import held, remove_unused


@dataclass
class Host:
    record: Path
    folders: tuple[str, ...]

    def make(self) -> None:
        """As a node does before it mounts over them."""
        for folder in self.folders:
            Path(folder).mkdir(exist_ok=True)

    @property
    def left(self) -> list[str]:
        return [Path(folder).name for folder in self.folders if Path(folder).exists()]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "record", tuple(str(tmp_path / name) for name in ("kubelet", "netns", "logs")))


def test_what_a_cluster_made_goes_with_it(host: Host) -> None:
    with held(host.folders, host.record):
        host.make()
    assert host.left == []
    assert not host.record.exists()


def test_what_was_there_before_stays(host: Host) -> None:
    Path(host.folders[1]).mkdir()
    with held(host.folders, host.record):
        host.make()
    assert host.left == ["netns"]


def test_what_is_not_empty_stays(host: Host) -> None:
    with held(host.folders, host.record):
        host.make()
        Path(host.folders[2], "somebody-elses").touch()
    assert host.left == ["logs"]


def test_while_another_cluster_runs_nothing_goes(host: Host) -> None:
    with held(host.folders, host.record):
        with held(host.folders, host.record):
            host.make()
        assert host.left == ["kubelet", "netns", "logs"], "removing would take the mounts of the first away"
    assert host.left == [], "the last one removes what the others made"
    assert not host.record.exists()


def test_the_one_that_made_them_may_end_first(host: Host) -> None:
    first, second = held(host.folders, host.record), held(host.folders, host.record)
    first.__enter__()
    host.make()
    second.__enter__()
    first.__exit__(None, None, None)
    assert host.left == ["kubelet", "netns", "logs"]
    second.__exit__(None, None, None)
    assert host.left == []


def test_what_a_killed_cluster_left_goes_with_the_next(host: Host) -> None:
    host.make()
    host.record.write_text("".join(f"{folder}\n" for folder in host.folders))
    with held(host.folders, host.record):
        assert len(host.left) == 3
    assert host.left == []


def test_only_these_folders_are_ever_removed(host: Host, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    host.record.write_text(f"{other}\n")
    remove_unused(host.folders, host.record)
    assert other.exists()
