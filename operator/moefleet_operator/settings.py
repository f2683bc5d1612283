"""The only reader of the environment and of arguments: what users and the chart set, parsed once, refused with a sentence."""

from __future__ import annotations

import argparse
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NoReturn

from moefleet_operator.api.fleet import API_VERSION

LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: Final[tuple[LogLevel, ...]] = ("debug", "info", "warning", "error")
# As decision 0001 has it: 32 random bytes.
CONTROL_KEY_BYTES: Final = 32
METRICS_PORT: Final = 9090
NAMESPACES_MAX: Final = 100
# Where Kubernetes puts a pod's token.
TOKEN_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

_HELP: Final = f"""Keeps fleets of model replicas ({API_VERSION} MoEFleet) running on Kubernetes.

Environment:
  OPERATOR_NAMESPACE         namespace of the operator: its Lease and the gateway pods (required)
  POD_NAME                   unique name of this process, the holder of the Lease (required)
  MOEFLEET_CONTROL_KEY_FILE  file with the base64 of {CONTROL_KEY_BYTES} bytes; absent: replicas' control ports are not protected
  MOEFLEET_WATCH_NAMESPACES  namespaces with fleets, separated by commas; empty: all
  MOEFLEET_GATEWAY_ENABLED   true or false: a gateway belongs to this release (default true)
  MOEFLEET_NODE_AUTOSCALER   true or false: nodes appear when pods are pending (default false)
  MOEFLEET_METRICS_LISTEN    HOST:PORT of /metrics, /healthz and /readyz (default [::]:{METRICS_PORT})
  MOEFLEET_LOG_LEVEL         {", ".join(LOG_LEVELS)} (default info)
  KUBECONFIG                 use this instead of the pod's ServiceAccount
"""


class SettingsError(Exception):
    """One sentence: what was wanted, what was found, under which name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    namespace: str
    pod_name: str
    control_key: bytes | None
    # Empty: all namespaces.
    watch_namespaces: tuple[str, ...]
    gateway: bool
    node_autoscaler: bool
    metrics_host: str
    metrics_port: int
    log_level: LogLevel
    # None: the ServiceAccount of the pod.
    kubeconfig: str | None
    # Name and uid; None: by hand, without one.
    service_account: tuple[str, str] | None = None


def load(environ: Mapping[str, str], arguments: Sequence[str], token_file: Path = TOKEN_FILE) -> Settings:
    """Raises SettingsError; `--help` prints and exits as argparse does."""
    _Parser(prog="python -m moefleet_operator", description=_HELP).parse_args(list(arguments))
    host, port = _address(environ, "MOEFLEET_METRICS_LISTEN", f"[::]:{METRICS_PORT}")
    namespace = _required(environ, "OPERATOR_NAMESPACE")
    return Settings(
        namespace=namespace,
        pod_name=_required(environ, "POD_NAME"),
        control_key=_control_key(environ, "MOEFLEET_CONTROL_KEY_FILE"),
        watch_namespaces=_names(environ, "MOEFLEET_WATCH_NAMESPACES"),
        gateway=_flag(environ, "MOEFLEET_GATEWAY_ENABLED", True),
        node_autoscaler=_flag(environ, "MOEFLEET_NODE_AUTOSCALER", False),
        metrics_host=host,
        metrics_port=port,
        log_level=_level(environ, "MOEFLEET_LOG_LEVEL"),
        kubeconfig=environ.get("KUBECONFIG") or None,
        service_account=_service_account(token_file, namespace),
    )


def _service_account(token_file: Path, namespace: str) -> tuple[str, str] | None:
    """Who we are, from the claims of our own token: asking the API server would need a right of its own."""
    try:
        claims = token_file.read_text(encoding="ascii").split(".")[1]
        said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["kubernetes.io"]
        name, uid = said["serviceaccount"]["name"], said["serviceaccount"]["uid"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    # An owner in another namespace would mean: delete this at once.
    return (str(name), str(uid)) if said.get("namespace") == namespace else None


class _Parser(argparse.ArgumentParser):
    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; everything is set by the environment, see --help")


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip()
    if not value:
        raise SettingsError(f"{name} is required and is not set")
    return value


def _flag(environ: Mapping[str, str], name: str, default: bool) -> bool:
    value = environ.get(name, "").strip().lower()
    if not value:
        return default
    if value not in ("true", "false"):
        raise SettingsError(f"{name}: wanted true or false, found {value!r}")
    return value == "true"


def _level(environ: Mapping[str, str], name: str) -> LogLevel:
    value = environ.get(name, "").strip().lower() or "info"
    for level in LOG_LEVELS:
        if value == level:
            return level
    raise SettingsError(f"{name}: wanted one of {', '.join(LOG_LEVELS)}, found {value!r}")


def _names(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part.strip() for part in environ.get(name, "").split(",") if part.strip()))
    for part in found:
        if len(part) > 63 or not all(c.isascii() and (c.islower() or c.isdigit() or c == "-") for c in part):
            raise SettingsError(f"{name}: wanted names of namespaces separated by commas, found {part!r}")
    if len(found) > NAMESPACES_MAX:
        raise SettingsError(
            f"{name}: wanted at most {NAMESPACES_MAX} namespaces, found {len(found)}; leave it empty to serve all"
        )
    return found


def _address(environ: Mapping[str, str], name: str, default: str) -> tuple[str, int]:
    value = environ.get(name, "").strip() or default
    host, colon, port = value.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"{name}: wanted HOST:PORT with a port from 0 to 65535, found {value!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _control_key(environ: Mapping[str, str], name: str) -> bytes | None:
    path = environ.get(name, "").strip()
    if not path:
        return None
    try:
        text = Path(path).read_text(encoding="ascii")
        key = base64.b64decode("".join(text.split()), validate=True)
    except OSError as error:
        raise SettingsError(f"{name}: cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, binascii.Error) as error:
        raise SettingsError(f"{name}: wanted base64 text in {path}: {error}") from error
    if len(key) != CONTROL_KEY_BYTES:
        raise SettingsError(
            f"{name}: wanted the base64 of {CONTROL_KEY_BYTES} bytes in {path}, found {len(key)} bytes"
        )
    return key
