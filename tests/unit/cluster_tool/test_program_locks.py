"""Which programs are built, under which key they are cached."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from moefleet_cluster.build import go_command
from moefleet_cluster.programs import CONTROL_PLANE, GO_MODULES, PROGRAMS, cache_folder, lock_hash, missing


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GO_MODULES, tmp_path / "go"))


@pytest.mark.parametrize("changed", ["kubernetes/go.sum", "runc/go.mod", "pause/main.go"])
def test_another_lock_is_another_folder(modules: Path, changed: str) -> None:
    before = lock_hash(modules)
    with (modules / changed).open("a") as file:
        file.write("\n")
    assert lock_hash(modules) != before


def test_files_that_do_not_decide_what_is_built_leave_the_key(modules: Path) -> None:
    before = lock_hash(modules)
    (modules / "NOTES.txt").write_text("read me")
    assert lock_hash(modules) == before == lock_hash()


def test_every_module_has_a_lock_and_a_program() -> None:
    folders = {p.name for p in GO_MODULES.iterdir() if p.is_dir()}
    assert folders == {p.module for p in PROGRAMS}
    for name in folders - {"pause"}:  # the standard library needs no go.sum
        assert (GO_MODULES / name / "go.sum").stat().st_size > 1000


def test_programs_come_from_the_tool_block_of_their_module() -> None:
    for program in PROGRAMS:
        if program.package != ".":
            assert program.package in (GO_MODULES / program.module / "go.mod").read_text(), program.name


def test_missing_names_what_is_not_there_in_build_order(tmp_path: Path) -> None:
    assert [p.name for p in missing(None, tmp_path)] == [p.name for p in PROGRAMS]
    (tmp_path / "cni").mkdir()
    for name in ("etcd", "cni/bridge"):
        (tmp_path / name).touch()
    left = [p.name for p in missing(None, tmp_path)]
    assert "etcd" not in left
    assert "cni/bridge" not in left
    assert {p.name for p in missing(CONTROL_PLANE, tmp_path)} == set(CONTROL_PLANE) - {"etcd"}


def test_an_unknown_program_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"unknown programs \['kube-apisrver'\].*kube-apiserver"):
        missing(("kube-apisrver",), tmp_path)


def test_only_runc_is_built_with_c_and_kubernetes_knows_its_version(tmp_path: Path) -> None:
    commands = {p.name: go_command(p, tmp_path / "out") for p in PROGRAMS}
    assert [p.name for p in PROGRAMS if p.cgo] == ["runc"]
    assert "seccomp" in commands["runc"]
    for name in ("kubelet", "kube-apiserver", "kubectl"):
        assert "version.gitVersion=v1.36.3" in " ".join(commands[name])
    assert all("-trimpath" in command for command in commands.values())


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/var/cache/me"}, Path("/var/cache/me/moefleet")),
        ({}, Path.home() / ".cache/moefleet"),
    ],
)
def test_the_cache_is_the_users(environ: dict[str, str], expected: Path) -> None:
    assert cache_folder(environ) == expected
