"""A real S3 server (moto) in its own environment, and a wire to it that breaks."""

from __future__ import annotations

import http.client
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from moefleet_cluster.ports import free_port

SERVER = Path(__file__).parents[3] / ".venv-s3/bin/moto_server"
START_S = 60.0
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"
}  # fmt: skip


@contextmanager
def s3_server() -> Iterator[int]:
    """Its port on loopback."""
    port = free_port("127.0.0.1")
    process = subprocess.Popen(
        [str(SERVER), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, f"{SERVER} ended with {process.returncode}"
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert time.monotonic() < deadline, f"{SERVER} does not listen after {START_S:g} s"
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def fill(port: int, bucket: str, files: Mapping[str, bytes]) -> None:
    """Readable by everybody: the tests of gs:// read without a signature."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    signed = {
        "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request",
        "x-amz-acl": "public-read",
    }
    for path, body in ((f"/{bucket}", b""), *((f"/{bucket}/{name}", body) for name, body in files.items())):
        connection.request("PUT", path, body, signed)
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (200, 409), said
    connection.close()


@dataclass(slots=True)
class Wire:
    """Passes bytes on to `port`, and cuts each of the next `cuts` connections after `after_bytes` of its answers."""

    port: int
    cuts: int = 0
    after_bytes: int = 0
    listen: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listen.getsockname()[1]}"

    def __enter__(self) -> Wire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listen.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listen.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
                threading.Thread(target=self._pass_back, args=(server, client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        _end(source, target)

    def _pass_back(self, source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(16384):
                target.sendall(data)
                passed += len(data)
                if passed >= self.after_bytes and self._cut():
                    break
        _end(source, target)

    def _cut(self) -> bool:
        with self._lock:
            self.cuts -= 1
            return self.cuts >= 0


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
