"""What the process is started with, read once: the configuration and who we are in the cluster."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moefleet_runtime.config import RuntimeConfig, check_config, parse_config
from moefleet_runtime.ending import FatalError

CONFIG_VARIABLE = "MOEFLEET_RUNTIME_CONFIG"
PEERS_VARIABLE = "MOEFLEET_PEERS"
START_BUDGET_VARIABLE = "MOEFLEET_START_BUDGET_S"


@dataclass(frozen=True, slots=True)
class Settings:
    config: RuntimeConfig
    # By the downward API; empty by hand.
    pod_uid: str
    pod_name: str
    pod_namespace: str
    # Whole processors that the engine may use.
    cpus: int
    # The fleet's replicas as a gRPC target (its headless Service); empty: there is nobody to hand an answer over to.
    peers: str = ""
    # What the kubelet's startup probe allows; 0: nobody counts.
    start_budget_s: float = 0.0


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Raises FatalError when the configuration is not one; exits by argparse on a wrong command line."""
    options = _parser().parse_args(arguments)
    if options.engine:
        config = _by_hand(options)
    elif options.config:
        try:
            text = Path(options.config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FatalError("ConfigurationInvalid", f"--config {options.config}: {error}") from error
        config = parse_config(text, options.config)
    elif environment.get(CONFIG_VARIABLE):
        config = parse_config(environment[CONFIG_VARIABLE], CONFIG_VARIABLE)
    else:
        raise FatalError(
            "ConfigurationInvalid",
            f"no configuration: give --config FILE, or {CONFIG_VARIABLE}, or --engine TYPE --model DIR --listen HOST:PORT",
        )
    return Settings(
        config=config,
        pod_uid=environment.get("MOEFLEET_POD_UID", ""),
        pod_name=environment.get("MOEFLEET_POD_NAME", ""),
        pod_namespace=environment.get("MOEFLEET_POD_NAMESPACE", ""),
        cpus=_cpus(environment),
        peers=environment.get(PEERS_VARIABLE, ""),
        start_budget_s=_start_budget_s(environment),
    )


def _cpus(environment: Mapping[str, str]) -> int:
    """From the pod's limit: what the machine has is not ours (and cgroup files differ between versions)."""
    text = environment.get("MOEFLEET_CPU_LIMIT_MILLIS", "")
    if not text:
        return os.cpu_count() or 1
    try:
        return max(1, int(text) // 1000)
    except ValueError as error:
        raise FatalError(
            "ConfigurationInvalid", f"MOEFLEET_CPU_LIMIT_MILLIS is {text!r}; wanted millicores"
        ) from error


def _start_budget_s(environment: Mapping[str, str]) -> float:
    text = environment.get(START_BUDGET_VARIABLE, "") or "0"
    try:
        return max(0.0, float(text))
    except ValueError as error:
        raise FatalError(
            "ConfigurationInvalid", f"{START_BUDGET_VARIABLE} is {text!r}; wanted seconds"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m moefleet_runtime", description="Serves one model over gRPC.", allow_abbrev=False
    )
    parser.add_argument(
        "--config", metavar="FILE", help=f"JSON; without it {CONFIG_VARIABLE}, which holds the same"
    )
    hand = parser.add_argument_group("by hand, instead of a configuration")
    hand.add_argument("--engine", metavar="TYPE", help="Torch or Simulated")
    hand.add_argument("--model", metavar="DIR", default="", help="folder of the checkpoint")
    hand.add_argument("--name", help="name of the model; the folder's name without it")
    hand.add_argument("--context-length", type=int, default=4096)
    hand.add_argument("--listen", metavar="HOST:PORT", default="127.0.0.1:8500")
    hand.add_argument("--control", metavar="HOST:PORT", default="127.0.0.1:0")
    hand.add_argument("--metrics", metavar="HOST:PORT", default="", help="no metrics server without it")
    hand.add_argument(
        "--arg",
        metavar="NAME=JSON",
        action="append",
        default=[],
        help="engine argument, such as --arg speed=0.1",
    )
    return parser


def _by_hand(options: argparse.Namespace) -> RuntimeConfig:
    engine_args: dict[str, Any] = {}
    for pair in options.arg:
        name, equals, value = pair.partition("=")
        if not equals:
            raise FatalError("ConfigurationInvalid", f"--arg {pair}: wanted NAME=VALUE")
        try:
            engine_args[name] = json.loads(value)
        except json.JSONDecodeError:
            engine_args[name] = value
    folder = Path(options.model).absolute() if options.model else None
    data = {
        "model": {
            "name": options.name or (folder.name if folder else options.engine.lower()),
            "source": folder.as_uri() if folder else "",
            "contextLength": options.context_length,
        },
        "engine": {"type": options.engine, "args": engine_args},
        "listen": options.listen,
        "control": {"listen": options.control},
        "metricsListen": options.metrics,
    }
    return check_config(data, "command line")
