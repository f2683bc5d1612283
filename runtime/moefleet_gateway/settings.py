"""Everything that can be set, from the environment, read once. A value that cannot be parsed stops the start.

MOEFLEET_RUN_DIR            /run/moefleet    folder shared with the envoy container: the picker's sockets, admin.sock, envoy.json
MOEFLEET_LISTEN             [::]:8080        Envoy's listener for consumers, h2c; [::] takes IPv4 too, as in the next three
MOEFLEET_CONTROL_LISTEN     [::]:8502        GatewayService for the operator (needs the credential)
MOEFLEET_HEALTH_LISTEN      [::]:8503        grpc.health.v1 of the picker for probes: `readiness`, `liveness`
MOEFLEET_METRICS_LISTEN     [::]:9091        HTTP /metrics (picker) and /metrics/envoy
MOEFLEET_CONTROL_KEY_FILE   (empty)          the release's control key; empty: no credentials, by hand and in tests only
MOEFLEET_WATCH_NAMESPACES   (empty)          comma list; empty: all namespaces
MOEFLEET_HOLD_MAX_S         600              no request is held longer, whatever its fleet's limits.hold says
MOEFLEET_REPLICA_SILENCE_S  8                a replica that sends nothing for so long, not even answers to pings, loses its streams
MOEFLEET_DRAIN_S            900              after SIGTERM running streams have so long; match the pod's grace period
MOEFLEET_ENVOY_BINARY       envoy            what `python -m moefleet_gateway envoy` starts
MOEFLEET_ENVOY_CONCURRENCY  0                Envoy worker threads; 0: from MOEFLEET_CPU_LIMIT_MILLIS, at least 1, else 2
MOEFLEET_CPU_LIMIT_MILLIS   (empty)          limits.cpu of the envoy container by the downward API
MOEFLEET_ENVOY_MEMORY_LIMIT_BYTES (empty)    limits.memory of the envoy container by the downward API; else 1 GiB
MOEFLEET_OPENAI_LISTEN      (empty)          Envoy's listener for OpenAI clients, HTTP/1.1 and h2c; empty: no OpenAI edge
MOEFLEET_OPENAI_INNER       127.0.0.1:8504   Envoy's listener for SMG; loopback
MOEFLEET_OPENAI_SMG         127.0.0.1:8505   where SMG listens; loopback
MOEFLEET_OPENAI_SMG_METRICS 127.0.0.1:8506   where SMG shows its own metrics; loopback
MOEFLEET_OPENAI_TOOL_CALL_PARSER (empty)     SMG's parser of tool calls; empty: by the model's name
MOEFLEET_OPENAI_REASONING_PARSER (empty)     SMG's parser of reasoning; empty: by the model's name
MOEFLEET_LOG_LEVEL          info
POD_NAME, POD_UID, NAMESPACE                 identity, by the downward API; by hand: host name and a random uid
KUBECONFIG                  (empty)          empty: in-cluster configuration
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# A gRPC message of a consumer may have so many bytes (gRPC's own default): 128 K token ids are 0.4 MiB and
# 128 K tokens of text about 0.6 MiB. The picker refuses more with INVALID_ARGUMENT.
MESSAGE_MAX_BYTES = 4 * 1024 * 1024
# In so many seconds a connection to a replica from which nothing comes is given up, and its streams end. A replica that
# computes answers pings all the same; one whose node is stopped or cut off does not.
REPLICA_SILENCE_S = 8.0
# What Envoy buffers of a request before it refuses it itself (overload.py); above the message's limit, so that what
# is a little too large gets the picker's refusal with its size.
ENVOY_BUFFER_BYTES = 5 * 1024 * 1024
# Envoy's memory where nobody says it; the chart's own default.
ENVOY_MEMORY_DEFAULT_BYTES = 1 << 30
# Below it there is no room for a few requests beside Envoy itself and its parent.
ENVOY_MEMORY_MIN_BYTES = 256 * 1024 * 1024


class SettingsError(ValueError):
    """A variable has a value that cannot be used; the message names both."""


@dataclass(frozen=True, slots=True)
class HostPort:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OpenAI:
    """The OpenAI edge. All but `listen` are on loopback: whoever reaches them passes the edge by."""

    listen: HostPort
    inner: HostPort
    smg: HostPort
    smg_metrics: HostPort
    tool_call_parser: str
    reasoning_parser: str


@dataclass(frozen=True, slots=True)
class Settings:
    run_dir: Path
    listen: HostPort
    control_listen: HostPort
    health_listen: HostPort
    metrics_listen: HostPort
    control_key_file: Path | None
    watch_namespaces: tuple[str, ...]
    hold_max_s: float
    replica_silence_s: float
    drain_s: float
    envoy_binary: str
    envoy_concurrency: int
    envoy_memory_limit_bytes: int
    log_level: str
    pod_name: str
    pod_uid: str
    namespace: str
    kubeconfig: str
    openai: OpenAI | None = None

    @property
    def picker_socket(self) -> Path:
        """Discovery, and what consumers ask the picker itself."""
        return self.run_dir / "picker.sock"

    @property
    def picks_socket(self) -> Path:
        return self.run_dir / "picks.sock"

    @property
    def access_log_socket(self) -> Path:
        return self.run_dir / "access-log.sock"

    @property
    def edge_socket(self) -> Path:
        """Requests of OpenAI clients, as they come."""
        return self.run_dir / "edge.sock"

    @property
    def inner_picks_socket(self) -> Path:
        """The same requests, as SMG sends them."""
        return self.run_dir / "inner-picks.sock"

    @property
    def tokenizers_dir(self) -> Path:
        return self.run_dir / "tokenizers"

    @property
    def admin_socket(self) -> Path:
        return self.run_dir / "admin.sock"

    @property
    def bootstrap_path(self) -> Path:
        return self.run_dir / "envoy.json"


def load(env: Mapping[str, str]) -> Settings:
    key_file = env.get("MOEFLEET_CONTROL_KEY_FILE", "")
    return Settings(
        run_dir=Path(env.get("MOEFLEET_RUN_DIR") or "/run/moefleet"),
        listen=_host_port(env, "MOEFLEET_LISTEN", "[::]:8080"),
        control_listen=_host_port(env, "MOEFLEET_CONTROL_LISTEN", "[::]:8502"),
        health_listen=_host_port(env, "MOEFLEET_HEALTH_LISTEN", "[::]:8503"),
        metrics_listen=_host_port(env, "MOEFLEET_METRICS_LISTEN", "[::]:9091"),
        control_key_file=Path(key_file) if key_file else None,
        watch_namespaces=tuple(
            n.strip() for n in env.get("MOEFLEET_WATCH_NAMESPACES", "").split(",") if n.strip()
        ),
        hold_max_s=_number(env, "MOEFLEET_HOLD_MAX_S", 600.0, 0.0, 3600.0),
        # Below 4 s a node that is busy for a moment looks dead, and pings come more often than replicas allow.
        replica_silence_s=_number(env, "MOEFLEET_REPLICA_SILENCE_S", REPLICA_SILENCE_S, 4.0, 300.0),
        drain_s=_number(env, "MOEFLEET_DRAIN_S", 900.0, 0.0, 86400.0),
        envoy_binary=env.get("MOEFLEET_ENVOY_BINARY") or "envoy",
        envoy_concurrency=_concurrency(env),
        envoy_memory_limit_bytes=_memory_limit(env),
        log_level=env.get("MOEFLEET_LOG_LEVEL") or "info",
        pod_name=env.get("POD_NAME") or socket.gethostname(),
        pod_uid=env.get("POD_UID") or str(uuid.uuid4()),
        namespace=env.get("NAMESPACE") or "default",
        kubeconfig=env.get("KUBECONFIG", ""),
        openai=_openai(env),
    )


def _openai(env: Mapping[str, str]) -> OpenAI | None:
    if not env.get("MOEFLEET_OPENAI_LISTEN"):
        return None
    inside = {
        name: _host_port(env, f"MOEFLEET_OPENAI_{name}", default)
        for name, default in (
            ("INNER", "127.0.0.1:8504"),
            ("SMG", "127.0.0.1:8505"),
            ("SMG_METRICS", "127.0.0.1:8506"),
        )
    }
    for name, at in inside.items():
        if not at.host.startswith("127.") and at.host != "::1":
            raise SettingsError(f"MOEFLEET_OPENAI_{name} must be a loopback address, found {at}")
    return OpenAI(
        listen=_host_port(env, "MOEFLEET_OPENAI_LISTEN", ""),
        inner=inside["INNER"],
        smg=inside["SMG"],
        smg_metrics=inside["SMG_METRICS"],
        tool_call_parser=env.get("MOEFLEET_OPENAI_TOOL_CALL_PARSER", ""),
        reasoning_parser=env.get("MOEFLEET_OPENAI_REASONING_PARSER", ""),
    )


def parse_host_port(text: str, what: str) -> HostPort:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise SettingsError(f"{what} must be host:port, found {text!r}")
    return HostPort(host, int(port))


def _host_port(env: Mapping[str, str], name: str, default: str) -> HostPort:
    return parse_host_port(env.get(name) or default, name)


def _number(env: Mapping[str, str], name: str, default: float, low: float, high: float) -> float:
    text = env.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        raise SettingsError(f"{name} must be a number of seconds, found {text!r}") from None
    if not low <= value <= high:
        raise SettingsError(f"{name} must be in {low:g}..{high:g}, found {text!r}")
    return value


def _concurrency(env: Mapping[str, str]) -> int:
    wanted = int(_number(env, "MOEFLEET_ENVOY_CONCURRENCY", 0, 0, 256))
    if wanted:
        return wanted
    millis = int(_number(env, "MOEFLEET_CPU_LIMIT_MILLIS", 2000, 0, 1e6))
    return max(1, millis // 1000)


def _memory_limit(env: Mapping[str, str]) -> int:
    name = "MOEFLEET_ENVOY_MEMORY_LIMIT_BYTES"
    text = env.get(name, "") or str(ENVOY_MEMORY_DEFAULT_BYTES)
    if not text.isdigit() or int(text) < ENVOY_MEMORY_MIN_BYTES:
        raise SettingsError(f"{name} must be at least {ENVOY_MEMORY_MIN_BYTES} bytes, found {text!r}")
    return int(text)
