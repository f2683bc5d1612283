"""python -m moefleet_gateway [picker|envoy|smg|drain] [--static FILE]

picker  (default) The picker container. Writes envoy.json and picker.sock into MOEFLEET_RUN_DIR, then serves.
envoy   The envoy container, on the same MOEFLEET_RUN_DIR: waits for those two files, starts MOEFLEET_ENVOY_BINARY,
        turns SIGTERM into a drain. Further arguments go to Envoy.
smg     The smg container, for MOEFLEET_OPENAI_LISTEN: becomes SMG. Further arguments go to it.
drain   Drains the Envoy of MOEFLEET_RUN_DIR and returns: a preStop hook for those who start Envoy themselves.

How the chart wires it:
  - one emptyDir for MOEFLEET_RUN_DIR in both containers, the same runAsUser in both;
  - POD_NAME, POD_UID, NAMESPACE by the downward API; MOEFLEET_CONTROL_KEY_FILE from the release's Secret;
  - picker: startup and readiness = gRPC `readiness` on 8503, liveness = gRPC `liveness` on 8503;
    envoy: readiness by the pod's other container (a TCP probe on 8080 is enough), no liveness on the picker's health;
  - terminationGracePeriodSeconds = MOEFLEET_DRAIN_S + 30; no preStop hooks with `picker` and `envoy` (both drain on
    SIGTERM, together); with a bare Envoy: preStop exec `python -m moefleet_gateway drain` in the envoy container;
  - RBAC: get, list, watch on moefleets (moefleet.io) and pods, cluster-wide or in MOEFLEET_WATCH_NAMESPACES.
Settings are described in settings.py.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

import structlog

from moefleet_gateway.settings import Settings, SettingsError, load


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m moefleet_gateway",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", default="picker", choices=("picker", "envoy", "smg", "drain"))
    parser.add_argument(
        "--static", type=Path, metavar="FILE", help="fleets and replicas from a JSON file, no Kubernetes"
    )
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command not in ("envoy", "smg"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        settings = load(os.environ)
    except SettingsError as error:
        print(f"moefleet_gateway: {error}", file=sys.stderr)
        return 2
    _configure_log(settings)
    match known.command:
        case "picker":
            return _picker(settings, known.static)
        case "envoy":
            from moefleet_gateway.launcher import run

            return asyncio.run(run(settings, rest))
        case "smg":
            from moefleet_gateway.openai import smg

            if settings.openai is None:
                print("moefleet_gateway smg: MOEFLEET_OPENAI_LISTEN is not set", file=sys.stderr)
                return 2
            return smg.run(settings.openai, rest)
        case _:
            return asyncio.run(_drain(settings))


def _picker(settings: Settings, static: Path | None) -> int:
    import uvloop

    from moefleet_gateway.listening import bindable, ipv6_works
    from moefleet_gateway.server import serve
    from moefleet_gateway.watching import Source
    from moefleet_gateway.watching.kubernetes import Kubernetes
    from moefleet_gateway.watching.static import StaticFile

    source: Source = (
        StaticFile(static) if static else Kubernetes(settings.kubeconfig, settings.watch_namespaces)
    )
    uvloop.run(serve(bindable(settings, ipv6_works()), source))
    return 0


async def _drain(settings: Settings) -> int:
    from moefleet_gateway.draining import drain_envoy
    from moefleet_gateway.envoy_admin import ERRORS, EnvoyAdmin

    async with EnvoyAdmin(settings.admin_socket) as admin:
        try:
            return 0 if await drain_envoy(admin, settings.drain_s) == 0 else 3
        except ERRORS as error:
            print(f"moefleet_gateway drain: {settings.admin_socket}: {error}", file=sys.stderr)
            return 1


def _configure_log(settings: Settings) -> None:
    level = logging.getLevelNamesMapping().get(settings.log_level.upper(), logging.INFO)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )


if __name__ == "__main__":
    sys.exit(main())
