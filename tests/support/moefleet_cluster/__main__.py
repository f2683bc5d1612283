"""Real Kubernetes clusters for tests, demo and people, without a container engine.

build     build the missing programs into the user's cache
images    make the test images
run       start a cluster with real nodes, run a command inside, end everything (root)
up, down  leave a cluster with real nodes running, end it (root)
status    what runs, and how to use it
shell     a shell (or a command) inside the running cluster (root)
forward   a local port that leads to an address inside the running cluster (root)
plane     a control plane with kwok in the foreground (no root)
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import preflight
from .build import BuildError, build
from .programs import CONTROL_PLANE, programs_folder

if TYPE_CHECKING:
    from .spec import ClusterSpec

_EXPECTED = (
    BuildError,
    LookupError,
    FileNotFoundError,
    preflight.PreflightError,
    RuntimeError,
    ValueError,
    TimeoutError,
)


def main(arguments: list[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    try:
        return int(_COMMANDS[chosen.command](chosen))
    except _EXPECTED as error:
        print(f"moefleet_cluster {chosen.command}: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moefleet_cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="build the programs that are missing from the cache")
    building.add_argument("--only", action="append", metavar="PROGRAM", help="only this one (repeat it)")
    building.add_argument("--install", action="store_true", help="first install what is missing with apt-get")
    images = commands.add_parser("images", help="make the test images and print the archive's path")
    running = commands.add_parser("run", help="run a command inside a cluster with real nodes")
    staying = commands.add_parser("up", help="leave a cluster with real nodes running")
    for one in (running, staying):
        one.add_argument("--nodes", type=int, default=1, help="real nodes (default 1)")
        one.add_argument(
            "--gpus", type=int, default=24, help="fake GPUs of each node (default 24: three replicas of 8)"
        )
        one.add_argument("--fake-nodes", type=int, default=0, help="kwok nodes of 8 GPUs besides (default 0)")
        one.add_argument("--kwok", action="store_true", help="run kwok, so that fake nodes can be added")
        one.add_argument("--audit", action="store_true", help="log every API write")
        one.add_argument(
            "--quick-node-failure",
            action="store_true",
            help="fail a node after 10 s of silence (busy machines make it flap)",
        )
        one.add_argument("--no-images", action="store_true", help="only the pause image")
        one.add_argument(
            "--gpu-site",
            default="",
            help="site-packages with torch for GPU containers (default: this Python's)",
        )
    running.add_argument(
        "--state", type=Path, help="keep the state in this folder (default: a temporary one)"
    )
    running.add_argument("inside", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    for one in (running, staying, images):
        one.add_argument(
            "--envoy", type=Path, help="Envoy binary of the gateway image (default: that of .venv-envoy)"
        )
    for name, text in (("down", "end the cluster that `up` left"), ("status", "what runs and how to use it")):
        commands.add_parser(name, help=text)
    shell = commands.add_parser("shell", help="a shell or command inside the running cluster")
    shell.add_argument("inside", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    forward = commands.add_parser("forward", help="a local port to an address inside the running cluster")
    forward.add_argument("target", metavar="HOST:PORT", help="for example a Service's cluster address")
    forward.add_argument("--port", type=int, default=0, help="local port (default: a free one)")
    plane = commands.add_parser("plane", help="a control plane with kwok in the foreground")
    plane.add_argument("--fake-nodes", type=int, default=3, help="kwok nodes of 8 GPUs (default 3)")
    return parser


def _build(chosen: argparse.Namespace) -> int:
    preflight.ensure(
        ["build", "plane"] if os.geteuid() else ["build", "plane", "nodes"], install=chosen.install
    )
    build(tuple(chosen.only) if chosen.only else None)
    return 0


def _images(chosen: argparse.Namespace) -> int:
    from .images import build_archive
    from .layers import default_store

    _build_if_missing(["nodes"], None)
    print(build_archive(default_store(), envoy=chosen.envoy))
    return 0


def _run(chosen: argparse.Namespace) -> int:
    from .namespaces import run

    command = _after_dashes(chosen.inside)
    if not command:
        raise ValueError("no command; for example: run -- kubectl get nodes (`up` leaves a cluster running)")
    state = chosen.state or Path(tempfile.mkdtemp(prefix="moefleet-cluster-"))
    return run(_spec(chosen, state.resolve()), command, keep=chosen.state is not None)


def _up(chosen: argparse.Namespace) -> int:
    from . import background

    folder = background.default_folder()
    if found := background.find(folder):
        print(f"a cluster already runs:\n{background.how_to_use(found)}")
        return 0
    found = background.up(folder, _spec(chosen, folder))
    print(background.status(folder))
    return 0


def _spec(chosen: argparse.Namespace, state: Path) -> ClusterSpec:
    """Builds whatever is missing first: inside there is no network."""
    from . import cgroups, gpu_site, seeds
    from .images import build_node_archives, build_pause_archive
    from .layers import default_store
    from .spec import ClusterSpec

    _build_if_missing(["nodes"], None)
    store = default_store()
    if chosen.no_images:
        archives, seed = (str(build_pause_archive(store)),), ""
    else:
        made = build_node_archives(store, envoy=chosen.envoy)
        archives, seed = (str(made.top),), str(seeds.ensure(made.stable))
    site = gpu_site.find(chosen.gpu_site)
    if site is None and not chosen.no_images:
        print(
            "no torch beside this Python: containers with GPUs get none (--gpu-site names another folder)",
            file=sys.stderr,
        )
    return ClusterSpec(
        name=cgroups.name_of(os.getpid()),
        state=str(state),
        programs=str(programs_folder()),
        archives=archives,
        seed=seed,
        nodes=chosen.nodes,
        gpus=chosen.gpus,
        gpu_site=str(site or ""),
        kwok=chosen.kwok,
        fake_nodes=chosen.fake_nodes,
        audit=chosen.audit,
        quick_node_failure=chosen.quick_node_failure,
    )


def _down(chosen: argparse.Namespace) -> int:
    from . import background

    folder = background.default_folder()
    print("ended; nothing is left" if background.down(folder) else f"no cluster runs in {folder}")
    return 0


def _status(chosen: argparse.Namespace) -> int:
    from . import background

    folder = background.default_folder()
    print(background.status(folder))
    return 0 if background.find(folder) else 1


def _shell(chosen: argparse.Namespace) -> int:
    from . import background

    command = background.enter(background.default_folder(), _after_dashes(chosen.inside))
    os.execvp(command[0], command)


def _forward(chosen: argparse.Namespace) -> int:
    from . import background, forward

    found = background.find(background.default_folder())
    if not found:
        raise RuntimeError("no cluster runs; `up` starts one")
    forward.run(
        found.inner_pid, chosen.target, chosen.port, lambda port: print(f"127.0.0.1:{port}", flush=True)
    )
    return 0


def _plane(chosen: argparse.Namespace) -> int:
    from .control_plane import ControlPlane

    _build_if_missing(["plane"], CONTROL_PLANE)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ControlPlane(kwok=True) as plane:
        plane.add_fake_nodes(chosen.fake_nodes)
        print(f"ready in {plane.ready_after_s['ready']} s; Ctrl-C ends it")
        print(f"  export KUBECONFIG={plane.kubeconfig} PATH={plane.programs}:$PATH", flush=True)
        while True:
            signal.pause()


def _build_if_missing(purposes: list[str], names: tuple[str, ...] | None) -> None:
    from .programs import missing

    lacking = missing(names)
    preflight.ensure(["plane", *purposes, *(["build"] if lacking else [])])
    if lacking:
        build(names)


def _after_dashes(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words


_COMMANDS = {
    "build": _build,
    "images": _images,
    "run": _run,
    "up": _up,
    "down": _down,
    "status": _status,
    "shell": _shell,
    "forward": _forward,
    "plane": _plane,
}

if __name__ == "__main__":
    sys.exit(main())
