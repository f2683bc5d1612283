"""The layers of the test images, each cached under a key of what goes into it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .oci import Layer, Tree, pack_layer
from .programs import cache_folder

# The Debian whose python3 is 3.11: the interpreter of the images and of the machine must be the same minor version, because
# compiled packages (torch) come from the machine.
SUITE = "bookworm"
IMAGE_PYTHON = (3, 11)
USER_ID = 65532
CODE = "/opt/moefleet/code"
SITE = "/opt/moefleet/site-packages"
GPU_SITE = "/opt/moefleet/torch"
# Bump when the way a layer is made changes and its inputs do not.
LAYOUT = 1
# Older layers of the same kind go, so that a year of lock files does not fill the disk.
KEPT_PER_KIND = 4
_BASE_LEAVES_OUT = (
    "dev", "proc", "sys", "run", "var/cache/apt", "var/lib/apt/lists", "var/log", "usr/share/doc", "usr/share/man",
    "usr/share/locale", "usr/share/info",
)  # fmt: skip


class ImageError(RuntimeError):
    """A layer cannot be made; the message names the command, what it said and what is needed."""


@dataclass(frozen=True, slots=True)
class LayerStore:
    """Layers by kind and key. Making one is atomic; a layer that exists is never made again."""

    folder: Path
    say: Callable[[str], None] = lambda line: print(line, flush=True)

    def get(self, kind: str, key: str, make: Callable[[Path], Layer]) -> Layer:
        target, facts = self.folder / f"{kind}-{key}.tar.gz", self.folder / f"{kind}-{key}.json"
        if facts.exists() and target.exists():
            found = json.loads(facts.read_text())
            os.utime(facts)
            return Layer(target, found["digest"], found["diff_id"], target.stat().st_size)
        self.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        self.say(f"image layer {kind}: making")
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".making-") as scratch:
            made = make(Path(scratch) / "layer.tar.gz")
            made.path.rename(target)
        partial = facts.with_suffix(".partial")
        partial.write_text(json.dumps({"digest": made.digest, "diff_id": made.diff_id}))
        partial.rename(facts)
        self.say(f"image layer {kind}: {time.monotonic() - begin:.0f} s, {made.size_bytes / 1e6:.1f} MB")
        self._forget_old(kind)
        return Layer(target, made.digest, made.diff_id, made.size_bytes)

    def _forget_old(self, kind: str) -> None:
        facts = sorted(
            self.folder.glob(f"{kind}-????????????.json"), key=lambda p: p.stat().st_mtime, reverse=True
        )
        for old in facts[KEPT_PER_KIND:]:
            old.unlink()
            old.with_suffix(".tar.gz").unlink(missing_ok=True)


def default_store() -> LayerStore:
    return LayerStore(cache_folder() / "layers")


# --- keys: pure but for reading the files they are about ------------------------------------------------------------
def key_of(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in (str(LAYOUT), *parts):
        content = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def key_of_files(folder: Path, paths: Iterable[Path]) -> str:
    parts: list[str | bytes] = []
    for path in sorted(paths):
        parts += [str(path.relative_to(folder)), path.read_bytes()]
    return key_of(*parts)


# --- the layers -----------------------------------------------------------------------------------------------------
def base(store: LayerStore, mirror: str = "") -> Layer:
    """Debian with python3 and nothing else; needs root and, the first time, a Debian mirror."""

    def make(target: Path) -> Layer:
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=".debian-") as scratch:
            root = Path(scratch)
            command = ["debootstrap", "--variant=minbase", "--include=python3", SUITE, scratch]
            _run(
                [*command, mirror] if mirror else command,
                "a Debian mirror (MOEFLEET_DEBIAN_MIRROR names another one)",
            )
            identity = f"moefleet:x:{USER_ID}:{USER_ID}::/tmp:/usr/sbin/nologin\n"
            with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
                passwd.write(identity)
                group.write(f"moefleet:x:{USER_ID}:\n")
            tree = Tree(root, "", _left_out_of_base, keep_as_is=True)
            return pack_layer(target, [tree], folders=["dev", "proc", "sys", "run"])

    return store.get("base", key_of(SUITE, "minbase python3", str(USER_ID), *_BASE_LEAVES_OUT), make)


def _left_out_of_base(name: str) -> bool:
    return any(name == out or name.startswith(out + "/") for out in _BASE_LEAVES_OUT)


def site_packages(
    store: LayerStore, kind: str, lock: Path, pip: tuple[str, ...] = (sys.executable, "-m", "pip")
) -> Layer:
    """What a lock file names, as wheels for the images' Python, compiled ahead: the images' file system is read-only."""

    def make(target: Path) -> Layer:
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=".site-") as scratch:
            command = [
                *pip, "install", "--quiet", "--disable-pip-version-check", "--target", scratch, "--no-compile",
                "--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(lock),
            ]  # fmt: skip
            if sys.version_info[:2] != IMAGE_PYTHON:
                dotted, tag = "{}.{}".format(*IMAGE_PYTHON), "cp{}{}".format(*IMAGE_PYTHON)
                command += [
                    "--python-version",
                    dotted,
                    "--implementation",
                    "cp",
                    "--abi",
                    tag,
                    "--abi",
                    "abi3",
                ]
                for platform in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"):
                    command += ["--platform", platform]
            _run(command, "the Python package index, or its packages in pip's cache")
            shutil.rmtree(Path(scratch) / "bin", ignore_errors=True)
            _compile(Path(scratch), SITE)
            return pack_layer(target, [Tree(Path(scratch), SITE)])

    return store.get(f"site-{kind}", key_of(lock.read_bytes(), str(IMAGE_PYTHON)), make)


def code(store: LayerStore, repository: Path) -> Layer:
    """The packages of the wheel. Seconds to make again: it is the layer that changes."""
    packages = [
        path
        for folder in ("operator", "runtime", "protos")
        for path in sorted((repository / folder).iterdir())
        if path.is_dir() and path.name.startswith("moefleet")
    ]
    files = [f for p in packages for f in p.rglob("*") if f.is_file() and "__pycache__" not in f.parts]

    def make(target: Path) -> Layer:
        with tempfile.TemporaryDirectory(dir=store.folder, prefix=".code-") as scratch:
            for package in packages:
                shutil.copytree(
                    package, Path(scratch) / package.name, ignore=shutil.ignore_patterns("__pycache__")
                )
            _compile(Path(scratch), CODE)
            return pack_layer(target, [Tree(Path(scratch), CODE)])

    return store.get("code", key_of_files(repository, files), make)


def file(store: LayerStore, kind: str, source: Path, inside: str) -> Layer:
    """One file or folder at `inside`, such as Envoy's binary or the tiny checkpoint."""
    files = [source] if source.is_file() else [f for f in source.rglob("*") if f.is_file()]
    key = key_of(inside, key_of_files(source.parent, files))
    return store.get(kind, key, lambda target: pack_layer(target, [Tree(source, inside)]))


def _compile(folder: Path, inside: str) -> None:
    """Unchecked: sources in a layer have no times, and nobody changes them."""
    if sys.version_info[:2] != IMAGE_PYTHON:
        return
    command = [
        sys.executable, "-m", "compileall", "-q", "-q", "--invalidation-mode", "unchecked-hash",
        "-s", str(folder), "-p", inside, str(folder),
    ]  # fmt: skip
    # Packages ship templates and syntax of other Python versions that do not compile: those are not imported either.
    subprocess.run(command, check=False, capture_output=True)


def _run(command: list[str], needed: str) -> None:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise ImageError(f"the program {command[0]} is missing; run the preflight") from None
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
        raise ImageError(
            f"{' '.join(command[:4])} ... ended with {done.returncode}:\n{said}\nneeded: {needed}"
        )
