"""`moefleet record`: what gateways stream becomes a file that a replay reads, and a wrong key is said."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from moefleet.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from moefleet_cli.app import run
from moefleet_cli.exits import Exit
from moefleet_cli.record import gateway_token
from moefleet_operator.telemetry import gateway_token as operators_token
from moefleet_replay.traces import TraceSpec, open_trace

KEY = bytes(range(32))


class Gateway(gateway_pb2_grpc.GatewayServiceServicer):
    """Three samples of two fleets, and the end of the stream."""

    def __init__(self, uid: str, token: str | None) -> None:
        self._uid, self._token = uid, token

    def WatchDemand(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        sent = dict(context.invocation_metadata()).get("authorization")
        if self._token is not None and sent != f"Bearer {self._token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "control credential")
        for seq in (1, 2, 3):
            sample = gateway_pb2.DemandSample(
                gateway_uid=self._uid, incarnation="i", seq=seq, time_s=1000.0 + 5 * seq
            )
            for name, factor in (("f", 10), ("other", 999)):
                count = factor * seq
                fleet = sample.fleets.add(
                    namespace="n", fleet=name, arrivals=count, prompt_tokens=600 * count
                )
                fleet.lengths.add(prompt_log2=9, output_log2=7, count=count)
            yield gateway_pb2.WatchDemandResponse(sample=sample)


@contextmanager
def gateways(*uids: str, token: str | None = None) -> Iterator[list[str]]:
    servers, arguments = [], []
    for uid in uids:
        server = grpc.server(ThreadPoolExecutor(2))
        gateway_pb2_grpc.add_GatewayServiceServicer_to_server(Gateway(uid, token), server)  # type: ignore[no-untyped-call]
        arguments += ["--control", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"]
        server.start()
        servers.append(server)
    try:
        yield arguments
    finally:
        for server in servers:
            server.stop(None)


def key_file(folder: Path) -> Path:
    path = folder / "key"
    path.write_bytes(base64.b64encode(KEY) + b"\n")
    return path


def test_what_two_gateways_took_is_one_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demand.jsonl"
    with gateways("one", "two", token=operators_token(KEY)) as control:
        arguments = ["record", "f", "-n", "n", *control, "--key-file", str(key_file(tmp_path)), "--out", str(out)]  # fmt: skip
        assert run(arguments) == Exit.OK
        assert "6 samples of n/f" in capsys.readouterr().err
        # A recording is never written over.
        assert run(arguments) == Exit.USAGE
        assert "cannot write" in capsys.readouterr().err
    trace = open_trace(TraceSpec(trace=f"demand:{out}"))
    # 30 of each gateway, from their first sample on, and none of the other fleet.
    assert len(trace.between(0, 1e9)) == 60


def test_a_wrong_key_and_a_gateway_that_is_not_there_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with gateways("one", token="another") as control:
        arguments = ["record", "f", *control, "--key-file", str(key_file(tmp_path)), "--out", str(tmp_path / "a")]  # fmt: skip
        assert run(arguments) == Exit.UNAVAILABLE
    assert "UNAUTHENTICATED: control credential" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"), [(b"!", "wanted base64"), (base64.b64encode(b"short"), "found 5 bytes")]
)
def test_a_file_that_holds_no_key_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    arguments = ["record", "f", "--control", "127.0.0.1:1", "--key-file", str(path), "--out", str(tmp_path / "a")]  # fmt: skip
    assert run(arguments) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_the_token_is_the_operators(tmp_path: Path) -> None:
    assert gateway_token(key_file(tmp_path)) == operators_token(KEY)
    assert gateway_token(None) is None
