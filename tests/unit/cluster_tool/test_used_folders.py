"""`run --state FOLDER` begins with an empty folder, and a cluster that did not start ends all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from moefleet_cluster import inside, namespaces
from moefleet_cluster.spec import ClusterSpec


def spec(folder: Path) -> ClusterSpec:
    return ClusterSpec(name="moefleet-test", state=str(folder), programs="/nowhere", archives=())


def test_a_used_folder_is_refused_and_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "node0").mkdir()
    with pytest.raises(ValueError, match=f"{tmp_path} is not empty"):
        namespaces.run(spec(tmp_path), ["true"], keep=True)
    assert [path.name for path in tmp_path.iterdir()] == ["node0"], "what was there is still there"


def test_a_cluster_whose_start_failed_at_once_can_be_ended(tmp_path: Path) -> None:
    inside.Cluster(spec(tmp_path)).stop()


def test_the_end_says_why_it_did_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder in the way of a node: what was found is said, and no other error hides it."""
    (tmp_path / "node0").mkdir()
    spec(tmp_path).write(tmp_path / "spec.json")
    monkeypatch.setattr(inside, "network_up", lambda _spec: None)
    monkeypatch.setattr(inside.signal, "signal", lambda *_: None)
    monkeypatch.setattr(inside.sys, "argv", ["inside", str(tmp_path / "spec.json")])
    assert inside.main() == 1
    assert "did not start" in capsys.readouterr().err
