"""`moefleet record`: the demand of a live fleet, as the pickers count it, into a file that `moefleet replay --trace demand:FILE` takes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

import grpc
import typer
from moefleet.gateway.v1 import gateway_pb2, gateway_pb2_grpc

from .exits import Exit
from .options import InputError, replay_input

KEY_BYTES = 32
# A sample of 1,000 fleets is below 500 kB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024
CONNECT_LIMIT_S = 10.0


@dataclass(slots=True)
class Recorder:
    """Lines of several gateways into one file, whole and flushed: what is there survives a kill."""

    namespace: str
    fleet: str
    file: TextIO
    samples: int = 0
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self) -> None:
        from moefleet_replay.traces.demand import header

        self.file.write(header(self.namespace, self.fleet))
        self.file.flush()

    def take(self, sample: gateway_pb2.DemandSample) -> None:
        from moefleet_replay.traces.demand import line

        text = line(sample, self.namespace, self.fleet)
        if text:
            with self._lock:
                self.file.write(text)
                self.file.flush()
                self.samples += 1


def record_command(
    fleet: Annotated[str, typer.Argument(help="Name of the fleet.")],
    *,
    namespace: Annotated[str, typer.Option("--namespace", "-n", help="Of the fleet.")] = "default",
    control: Annotated[
        list[str],
        typer.Option(metavar="HOST:PORT", help="Control port of a gateway pod; once for each gateway, or counts are too low."),
    ],
    key_file: Annotated[
        Path | None, typer.Option(help="The release's control key (base64), from its Secret; absent: none is asked for.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Default: until Ctrl-C. The last hour comes at once.", min=0.1)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="JSON lines; must not exist yet.")],
) -> None:  # fmt: skip
    """Record what arrives at a fleet, to be replayed: `moefleet replay --trace demand:FILE`.

    The control port is inside the cluster: `kubectl port-forward pod/GATEWAY 8502` brings it here, and
    `kubectl get secret RELEASE-control-key -o jsonpath={.data.key} | base64 -d` gives the key.
    """
    token = gateway_token(key_file)
    with replay_input("moefleet record"):
        try:
            file = out.open("x", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {out}: {error.strerror}") from error
        with file:
            recorder = Recorder(namespace, fleet, file)
            recorder.begin()
            watch(recorder, control, token, duration)
    for failure in recorder.failures:
        print(f"warning: {failure}", file=sys.stderr)
    print(f"{recorder.samples} samples of {namespace}/{fleet} are in {out}", file=sys.stderr)
    if recorder.failures and not recorder.samples:
        raise typer.Exit(int(Exit.UNAVAILABLE))


def watch(recorder: Recorder, addresses: Iterable[str], token: str | None, duration_s: float | None) -> None:
    """Until the time is over, all streams have ended, or Ctrl-C; which is how a recording is meant to end."""
    ended = threading.Event()
    channels = [
        grpc.insecure_channel(a, [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]) for a in addresses
    ]
    threads = [
        threading.Thread(target=_follow, args=(recorder, address, channel, token, ended), daemon=True)
        for address, channel in zip(addresses, channels, strict=True)
    ]
    for thread in threads:
        thread.start()
    deadline = None if duration_s is None else time.monotonic() + duration_s
    try:
        while any(t.is_alive() for t in threads) and (deadline is None or time.monotonic() < deadline):
            time.sleep(0.1)
    except KeyboardInterrupt:
        pass
    ended.set()
    for channel in channels:
        channel.close()
    for thread in threads:
        thread.join(CONNECT_LIMIT_S)


def _follow(
    recorder: Recorder, address: str, channel: grpc.Channel, token: str | None, ended: threading.Event
) -> None:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    stub = gateway_pb2_grpc.GatewayServiceStub(channel)  # type: ignore[no-untyped-call]
    try:
        grpc.channel_ready_future(channel).result(CONNECT_LIMIT_S)
        for message in stub.WatchDemand(gateway_pb2.WatchDemandRequest(), metadata=metadata):
            recorder.take(message.sample)
    except grpc.FutureTimeoutError:
        recorder.failures.append(f"{address}: no connection within {CONNECT_LIMIT_S:g} s")
    except (grpc.RpcError, ValueError) as error:
        # Closing the channel is how we end ourselves.
        if not ended.is_set():
            said = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.RpcError) else str(error)  # fmt: skip
            recorder.failures.append(f"{address}: {said}")


def gateway_token(key_file: Path | None) -> str | None:
    """What the operator sends, from the release's key."""
    if key_file is None:
        return None
    try:
        key = base64.b64decode(key_file.read_bytes().strip(), validate=True)
    except OSError as error:
        raise InputError(f"cannot read {key_file}: {error.strerror}") from error
    except binascii.Error as error:
        raise InputError(f"key-file: wanted base64 of {KEY_BYTES} bytes: {error}") from None
    if len(key) != KEY_BYTES:
        raise InputError(f"key-file: wanted base64 of {KEY_BYTES} bytes, found {len(key)} bytes")
    return hmac.new(key, b"gateway", hashlib.sha256).hexdigest()
