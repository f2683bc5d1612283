"""Building with a stand-in for the Go compiler: what is left behind, what is said."""

from __future__ import annotations

import io
import os
import re
import threading
from pathlib import Path

import pytest
from moefleet_cluster import build as building
from moefleet_cluster.build import BuildError, build

GO = """#!/bin/sh
# go build ... -o OUTPUT PACKAGE
while [ "$1" != "-o" ]; do shift; done
echo "go: downloading example.test/module v1.0.0" >&2
{body}
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stand-in; `script` replaces what it does."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    script(folder, 'echo "calls" >> "$(dirname "$0")/calls"; printf "program of %s" "$3" > "$2"')
    return folder


def script(folder: Path, body: str) -> None:
    (folder / "go").write_text(GO.replace("{body}", body))
    (folder / "go").chmod(0o755)


def test_each_program_is_built_once_and_can_be_run(go: Path, tmp_path: Path) -> None:
    out, folder = io.StringIO(), tmp_path / "bin"
    built = build(("etcd", "cni/bridge"), folder, out)
    assert [b.name for b in built] == ["etcd", "cni/bridge"]
    assert (folder / "etcd").read_text() == "program of go.etcd.io/etcd/server/v3"
    assert os.access(folder / "cni/bridge", os.X_OK)
    assert "[1/2] etcd: building" in out.getvalue()
    assert re.search(r"\[2/2\] cni/bridge: \d+ s, 0 MB\n", out.getvalue())

    assert build(("etcd", "cni/bridge"), folder, out) == []
    assert (go / "calls").read_text().count("calls") == 2


def test_a_program_that_fails_leaves_nothing_and_those_before_it_stay(go: Path, tmp_path: Path) -> None:
    script(
        go,
        'case "$3" in *kwok*) printf half > "$2"; echo "boom.go:3: no such thing"; exit 1;; esac; printf ok > "$2"',
    )
    folder = tmp_path / "bin"
    with pytest.raises(
        BuildError, match=r"kwok \(sigs.k8s.io/kwok/cmd/kwok\) did not build \(exit 1\):\nboom.go:3"
    ):
        build(("etcd", "kwok"), folder, io.StringIO())
    assert sorted(p.name for p in folder.iterdir()) == ["etcd"]


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("fatal error: seccomp.h: No such file or directory", "apt-get install libseccomp-dev"),
        ("Get: dial tcp: lookup proxy: no such host", "the Go module proxy"),
        ("go: go.mod requires go >= 1.26.0 (running go 1.19)", "Go 1.26 or later"),
    ],
)
def test_a_failure_says_what_is_needed(go: Path, tmp_path: Path, said: str, needed: str) -> None:
    script(go, f'echo "{said}" >&2; exit 1')
    with pytest.raises(BuildError) as raised:
        build(("runc",), tmp_path / "bin", io.StringIO())
    assert said in str(raised.value)
    assert needed in str(raised.value)


def test_without_go_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match="`go` is not in PATH"):
        build(("pause",), tmp_path / "bin", io.StringIO())


def test_two_builders_at_once_share_the_work(go: Path, tmp_path: Path) -> None:
    script(go, 'echo "calls" >> "$(dirname "$0")/calls"; sleep 0.3; printf ok > "$2"')
    builders = [
        threading.Thread(target=build, args=(("etcd", "kwok"), tmp_path / "bin", io.StringIO()))
        for _ in range(3)
    ]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert (go / "calls").read_text().count("calls") == 2


def test_a_long_build_shows_that_time_passes(
    go: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "HEARTBEAT_S", 0.05)
    script(go, 'sleep 0.5; printf ok > "$2"')
    out = io.StringIO()
    build(("etcd",), tmp_path / "bin", out)
    assert re.search(r"\[1/1\] etcd: \d+ s, 1 modules downloaded\n", out.getvalue())
