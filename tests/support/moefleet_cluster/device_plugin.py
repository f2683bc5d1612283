"""A device plugin with made-up GPUs (kubelet API v1beta1). Like NVIDIA's toolkit it injects what a GPU container needs from the
host: here a read-only folder with torch, which is too large for an image.

`python -m moefleet_cluster.device_plugin SPEC.json` runs until it is ended. Writing `{"gpu-3": "Unhealthy"}` into the health file
makes that GPU fail, as long as it says so.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from . import wire

# Fixed in the kubelet, whatever its --root-dir says.
FOLDER = Path("/var/lib/kubelet/device-plugins")
HEALTH_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """`site` is the host's folder that containers get at `mount`; empty: no mount."""

    resource: str
    count: int
    site: str
    mount: str
    health_file: str


# --- messages, pure -------------------------------------------------------------------------------------------------
def device_list(health: dict[str, str]) -> bytes:
    """ListAndWatchResponse."""
    return b"".join(wire.text(1, wire.text(1, name) + wire.text(2, state)) for name, state in health.items())


def allocation(request: bytes, spec: GpuSpec) -> bytes:
    """AllocateResponse: one answer for each container of the AllocateRequest."""
    out = b""
    for number, container in wire.fields(request):
        if number != 1 or not isinstance(container, bytes):
            continue
        names = [value.decode() for n, value in wire.fields(container) if n == 1 and isinstance(value, bytes)]
        indices = sorted(int(name.removeprefix("gpu-")) for name in names)
        environment = {"NVIDIA_VISIBLE_DEVICES": ",".join(map(str, indices))}
        answer = b""
        if spec.site:
            environment["MOEFLEET_GPU_SITE"] = spec.mount
            answer += wire.text(2, wire.text(1, spec.mount) + wire.text(2, spec.site) + wire.flag(3, True))
        answer += b"".join(wire.text(1, wire.text(1, k) + wire.text(2, v)) for k, v in environment.items())
        out += wire.text(1, answer)
    return out


def registration(socket_name: str, resource: str) -> bytes:
    """RegisterRequest."""
    return wire.text(1, "v1beta1") + wire.text(2, socket_name) + wire.text(3, resource)


# --- the server -----------------------------------------------------------------------------------------------------
class Plugin:
    def __init__(self, spec: GpuSpec) -> None:
        self._spec = spec
        self._health = {f"gpu-{i}": "Healthy" for i in range(spec.count)}
        self._changed = threading.Condition()
        self._socket = FOLDER / f"fake-{spec.resource.replace('/', '-')}.sock"

    def serve(self) -> grpc.Server:
        """Listens and registers with the kubelet, which must be up."""
        self._socket.unlink(missing_ok=True)
        unary = grpc.unary_unary_rpc_method_handler
        # ListAndWatch holds a thread for as long as the kubelet listens.
        server = grpc.server(futures.ThreadPoolExecutor(4))
        handlers = {
            "GetDevicePluginOptions": unary(lambda request, context: b""),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self._list_and_watch),
            "Allocate": unary(lambda request, context: allocation(request, self._spec)),
            "GetPreferredAllocation": unary(lambda request, context: b""),
            "PreStartContainer": unary(lambda request, context: b""),
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", handlers),)
        )
        server.add_insecure_port(f"unix://{self._socket}")
        server.start()
        with grpc.insecure_channel(f"unix://{FOLDER}/kubelet.sock") as channel:
            register = channel.unary_unary("/v1beta1.Registration/Register")
            register(registration(self._socket.name, self._spec.resource), timeout=10, wait_for_ready=True)
        return server

    def follow_health(self) -> None:
        """Returns when the kubelet has thrown the socket away: it was restarted and wants a new registration."""
        path, before = Path(self._spec.health_file), ""
        while self._socket.exists():
            threading.Event().wait(HEALTH_POLL_S)
            try:
                now = path.read_text()
                states = json.loads(now) if now.strip() else {}
            except (FileNotFoundError, json.JSONDecodeError):  # absent, or half written
                continue
            if now != before:
                before = now
                with self._changed:
                    for name in self._health:
                        self._health[name] = states.get(name, "Healthy")
                    self._changed.notify_all()

    def _list_and_watch(self, request: bytes, context: Any) -> Iterator[bytes]:
        while context.is_active():
            with self._changed:
                message = device_list(self._health)
            yield message
            with self._changed:
                if message == device_list(self._health):
                    self._changed.wait(3600)


def main() -> None:
    plugin = Plugin(GpuSpec(**json.loads(Path(sys.argv[1]).read_text())))
    while True:
        server = plugin.serve()  # held: gRPC ends a server that nobody refers to, socket and all
        plugin.follow_health()
        server.stop(0)


if __name__ == "__main__":
    main()
