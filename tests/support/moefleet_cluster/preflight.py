"""What this machine lacks, and the one line that brings it. `judge` is pure; `look` asks the machine."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

GO_NEEDED = (1, 26)
PYTHON_NEEDED = (3, 11)
# What needs it: "build" the programs, "plane" the control plane, "nodes" real nodes and their images.
_PROGRAMS: tuple[tuple[str, str, str], ...] = (
    ("openssl", "openssl", "plane"),
    ("setpriv", "util-linux", "plane"),
    ("unshare", "util-linux", "nodes"),
    ("nsenter", "util-linux", "nodes"),
    ("ip", "iproute2", "nodes"),
    ("nft", "nftables", "nodes"),
    ("debootstrap", "debootstrap", "nodes"),
    ("mount", "mount", "nodes"),
    ("gcc", "gcc libc6-dev", "build"),
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. `go` is what `go version` printed, empty without Go."""

    programs: frozenset[str]
    go: str
    python: tuple[int, int]
    is_root: bool
    has_seccomp_headers: bool
    has_apt: bool
    # Debian ships `venv` without the part that puts pip into it.
    has_ensurepip: bool = True


@dataclass(frozen=True, slots=True)
class Lack:
    """`packages` are Debian's; empty when apt-get cannot bring it."""

    sentence: str
    packages: tuple[str, ...] = ()


def look() -> Machine:
    names = [name for name, _, _ in _PROGRAMS]
    go = ""
    if shutil.which("go"):
        asked = subprocess.run(["go", "version"], capture_output=True, text=True, check=False)
        go = asked.stdout.strip() or "go (does not run)"
    # Multi-arch distributions keep headers of libraries under /usr/include as well.
    headers = any(Path(folder, "seccomp.h").exists() for folder in ("/usr/include", "/usr/local/include"))
    found = frozenset(name for name in names if shutil.which(name))
    python = (sys.version_info.major, sys.version_info.minor)
    ensurepip = importlib.util.find_spec("ensurepip") is not None
    apt = shutil.which("apt-get") is not None
    return Machine(found, go, python, os.geteuid() == 0, headers, apt, ensurepip)


def judge(machine: Machine, purposes: Sequence[str]) -> list[Lack]:
    """Everything that is missing for the purposes ("build", "plane", "nodes"), root first."""
    lacks = []
    if "nodes" in purposes and not machine.is_root:
        lacks.append(
            Lack("real nodes and their images need root (the control plane and the unit tests do not)")
        )
    if machine.python < PYTHON_NEEDED:
        found = ".".join(map(str, machine.python))
        lacks.append(Lack(f"Python {found} is too old: 3.11 or later is needed"))
    if not machine.has_ensurepip:
        lacks.append(Lack("Python cannot make environments (ensurepip is missing)", ("python3-venv",)))
    if "build" in purposes:
        lacks += _go_lacks(machine.go)
        if not machine.has_seccomp_headers:
            lacks.append(
                Lack("the headers of libseccomp are missing (runc is built with them)", ("libseccomp-dev",))
            )
    for name, packages, purpose in _PROGRAMS:
        if purpose in purposes and name not in machine.programs:
            lacks.append(Lack(f"the program `{name}` is missing", tuple(packages.split())))
    return lacks


def _go_lacks(go: str) -> list[Lack]:
    wanted = ".".join(map(str, GO_NEEDED))
    if not go:
        return [Lack(f"Go is missing: {wanted} or later is needed in PATH (Debian's packages are too old)")]
    version = re.search(r"go(\d+)\.(\d+)", go)
    if version is None or (int(version[1]), int(version[2])) < GO_NEEDED:
        return [Lack(f"Go is too old: {wanted} or later is needed, found: {go}")]
    return []


def install_line(lacks: Sequence[Lack]) -> list[str]:
    """The command that brings what apt-get can bring; empty when there is nothing for it to do."""
    packages = sorted({package for lack in lacks for package in lack.packages})
    return ["apt-get", "install", "-y", "--no-install-recommends", *packages] if packages else []


def report(lacks: Sequence[Lack], machine: Machine) -> str:
    lines = [f"- {lack.sentence}" for lack in lacks]
    if line := install_line(lacks):
        where = (
            ""
            if machine.has_apt
            else " (this machine has no apt-get: install the same by its package manager)"
        )
        lines.append(f"this brings it{where}:\n    {' '.join(line)}")
    return "\n".join(lines)


class PreflightError(RuntimeError):
    """Something is missing; the message is the report."""


def ensure(purposes: Sequence[str], *, install: bool = False) -> None:
    """
    Raises:
        PreflightError: when something is missing that `install` did not or could not bring.
    """
    machine = look()
    lacks = judge(machine, purposes)
    if install and install_line(lacks) and machine.is_root and machine.has_apt:
        for command in (["apt-get", "update", "-q"], install_line(lacks)):
            print(f"+ {' '.join(command)}", flush=True)
            subprocess.run(command, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        machine = look()
        lacks = judge(machine, purposes)
    if lacks:
        raise PreflightError("this machine lacks what is needed:\n" + report(lacks, machine))
