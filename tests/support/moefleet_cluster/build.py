"""Builds missing programs into the cache: one builder at a time, each program there whole or not at all."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from .programs import GO_MODULES, Program, missing, programs_folder

# A line that says "still there" keeps CI systems and people from thinking that the build hangs.
HEARTBEAT_S = 20.0


class BuildError(RuntimeError):
    """A program could not be built; the message holds the end of the compiler's output and what is needed."""


@dataclass(frozen=True, slots=True)
class Built:
    name: str
    seconds: float
    size_bytes: int


def build(
    names: tuple[str, ...] | None = None, folder: Path | None = None, out: TextIO = sys.stdout
) -> list[Built]:
    """Builds what is missing of `names` (all when None). A second caller waits for the first and then finds the work done.

    Raises:
        BuildError: when a program does not build.
        LookupError: for an unknown name.
    """
    where = folder or programs_folder()
    if not missing(names, where):
        print(f"programs: all built ({where})", file=out, flush=True)
        return []
    with locked(where.parent / f"{where.name}.lock", out):
        wanted = missing(names, where)
        done = []
        for i, program in enumerate(wanted, 1):
            done.append(_build_one(program, where, f"[{i}/{len(wanted)}]", out))
    total_s = sum(b.seconds for b in done)
    print(f"programs: {len(done)} built in {total_s:.0f} s ({where})", file=out, flush=True)
    return done


@contextmanager
def locked(path: Path, out: TextIO = sys.stdout) -> Iterator[None]:
    """Holds the file's lock; says so when somebody else has it. The kernel frees it when the holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build that holds {path}", file=out, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def go_command(program: Program, output: Path) -> list[str]:
    tags = ["-tags", program.tags] if program.tags else []
    flags = f"-s -w {program.link_flags}".strip()
    return ["go", "build", "-trimpath", *tags, "-ldflags", flags, "-o", str(output), program.package]


def _build_one(program: Program, where: Path, position: str, out: TextIO) -> Built:
    target = where / program.name
    target.parent.mkdir(parents=True, exist_ok=True)
    # GOWORK and GOFLAGS of the user could change which versions are built; the caches and the proxy stay theirs.
    environment = {
        **os.environ,
        "CGO_ENABLED": "1" if program.cgo else "0",
        "GOWORK": "off",
        "GOFLAGS": "-buildvcs=false",
    }
    print(f"{position} {program.name}: building", file=out, flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(dir=where, prefix=".building-") as scratch:
        output = Path(scratch) / "program"
        try:
            process = subprocess.Popen(
                go_command(program, output), cwd=GO_MODULES / program.module, env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise BuildError("cannot build: the program `go` is not in PATH; run the preflight") from None
        said = _follow(process, f"{position} {program.name}", begin, out)
        if process.returncode:
            raise BuildError(_explain(program, process.returncode, said))
        output.chmod(0o755)
        output.rename(target)
    built = Built(program.name, time.monotonic() - begin, target.stat().st_size)
    print(
        f"{position} {program.name}: {built.seconds:.0f} s, {built.size_bytes / 1e6:.0f} MB",
        file=out,
        flush=True,
    )
    return built


def _follow(process: subprocess.Popen[str], label: str, begin: float, out: TextIO) -> list[str]:
    """Reads the compiler's output to its end while a line every HEARTBEAT_S shows that time passes."""
    said: list[str] = []
    downloads = 0
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(HEARTBEAT_S):
            what = f", {downloads} modules downloaded" if downloads else ""
            print(f"{label}: {time.monotonic() - begin:.0f} s{what}", file=out, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("go: downloading"):
            downloads += 1
        else:
            said.append(line.rstrip())
    process.wait()
    ended.set()
    ticker.join()
    return said


def _explain(program: Program, code: int, said: list[str]) -> str:
    text = "\n".join(said[-15:])
    hint = ""
    if "seccomp.h" in text or ("libseccomp" in text and program.cgo):
        hint = "\nneeded: the libseccomp headers (apt-get install libseccomp-dev)"
    elif any(word in text for word in ("dial tcp", "no such host", "i/o timeout", "connection refused")):
        hint = "\nneeded: the Go module proxy (GOPROXY) for the first build; or a Go module cache filled on another machine"
    elif "requires go >=" in text or "toolchain" in text:
        hint = "\nneeded: Go 1.26 or later"
    return f"{program.name} ({program.package}) did not build (exit {code}):\n{text}{hint}"
