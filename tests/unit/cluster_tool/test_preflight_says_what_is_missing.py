"""What is missing, for which purpose, and the line that brings it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from moefleet_cluster.preflight import Machine, install_line, judge, report

ALL = frozenset({"openssl", "setpriv", "unshare", "nsenter", "ip", "nft", "debootstrap", "mount", "gcc"})
READY = Machine(
    ALL, "go version go1.26.8 linux/amd64", (3, 11), is_root=True, has_seccomp_headers=True, has_apt=True
)
EVERYTHING = ("build", "plane", "nodes")


def test_nothing_is_missing_on_a_ready_machine() -> None:
    assert judge(READY, EVERYTHING) == []
    assert install_line([]) == []


@pytest.mark.parametrize(
    ("machine", "purposes", "sentence", "package"),
    [
        (replace(READY, is_root=False), ["nodes"], "need root", ""),
        (replace(READY, go=""), ["build"], "Go is missing: 1.26 or later", ""),
        (replace(READY, go="go version go1.19.8 linux/amd64"), ["build"], "Go is too old", ""),
        (replace(READY, go="go (does not run)"), ["build"], "Go is too old", ""),
        (replace(READY, python=(3, 9)), ["plane"], "Python 3.9 is too old", ""),
        (replace(READY, has_seccomp_headers=False), ["build"], "headers of libseccomp", "libseccomp-dev"),
        (
            replace(READY, programs=ALL - {"debootstrap"}),
            ["nodes"],
            "`debootstrap` is missing",
            "debootstrap",
        ),
        (replace(READY, programs=ALL - {"nft"}), ["nodes"], "`nft` is missing", "nftables"),
        (replace(READY, programs=ALL - {"ip"}), ["nodes"], "`ip` is missing", "iproute2"),
        (replace(READY, programs=ALL - {"openssl"}), ["plane"], "`openssl` is missing", "openssl"),
        (replace(READY, programs=ALL - {"unshare"}), ["nodes"], "`unshare` is missing", "util-linux"),
        (replace(READY, has_ensurepip=False), ["plane"], "ensurepip is missing", "python3-venv"),
        (replace(READY, programs=ALL - {"gcc"}), ["build"], "`gcc` is missing", "gcc"),
    ],
)
def test_each_lack_is_named_with_its_package(
    machine: Machine, purposes: list[str], sentence: str, package: str
) -> None:
    lacks = judge(machine, purposes)
    assert len(lacks) == 1
    assert sentence in lacks[0].sentence
    assert (package in install_line(lacks)) is bool(package)


@pytest.mark.parametrize(
    ("machine", "purposes"),
    [
        (replace(READY, is_root=False, programs=frozenset({"openssl", "setpriv"}), go=""), ["plane"]),
        (replace(READY, programs=ALL - {"gcc"}, has_seccomp_headers=False, go=""), ["plane", "nodes"]),
    ],
)
def test_what_a_purpose_does_not_need_is_not_asked_for(machine: Machine, purposes: list[str]) -> None:
    assert judge(machine, purposes) == []


def test_a_bare_machine_gets_one_line_for_everything() -> None:
    bare = Machine(frozenset(), "", (3, 11), is_root=True, has_seccomp_headers=False, has_apt=True)
    lacks = judge(bare, EVERYTHING)
    assert report(lacks, bare).splitlines()[-1].strip() == (
        "apt-get install -y --no-install-recommends debootstrap gcc iproute2 libc6-dev libseccomp-dev mount nftables openssl util-linux"
    )
    assert "has no apt-get" in report(lacks, replace(bare, has_apt=False))
