"""A web server with ranges and with faults on demand: cuts, wrong bytes, refusals, silence."""

from __future__ import annotations

import http.server
import ssl
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    range: str
    authorization: str


@dataclass(frozen=True, slots=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Faults:
    """Each is used up as it happens, so that a test says how often."""

    # Path -> how many of its next answers end after half of their bytes.
    cuts: Counter[str] = field(default_factory=Counter)
    # Path -> how many of its next answers have a wrong byte.
    wrong: Counter[str] = field(default_factory=Counter)
    # Path -> how many of its next answers are this status.
    refusals: dict[str, tuple[int, int]] = field(default_factory=dict)
    # Paths whose answers wait until `go` is set, after their first half.
    held: set[str] = field(default_factory=set)
    go: threading.Event = field(default_factory=threading.Event)


class WebServer:
    """`answer` gets a path and says what is there; None is 404."""

    def __init__(
        self, answer: Callable[[str], Reply | None], *, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.answer, self.faults = answer, Faults()
        self.requests: list[Request] = []
        self.token = ""
        self._lock = threading.Lock()
        outer = self

        class Handler(_Handler):
            server_of = outer

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self._server.server_port}"

    def __enter__(self) -> WebServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.faults.go.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def saw(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def take(self, faults: Counter[str], path: str) -> bool:
        with self._lock:
            if faults[path] <= 0:
                return False
            faults[path] -= 1
            return True

    def refusal(self, path: str) -> int | None:
        with self._lock:
            status, left = self.faults.refusals.get(path, (0, 0))
            if left <= 0:
                return None
            self.faults.refusals[path] = (status, left - 1)
            return status

    def bodies(self, name: str) -> list[Request]:
        """GETs of a file of that name, whatever its folder."""
        return [r for r in self.requests if r.method == "GET" and r.path.rpartition("/")[2] == name]


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: WebServer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Tests read `requests`."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        site = self.server_of
        path = unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization", "")
        site.saw(Request(self.command, path, self.headers.get("Range", ""), authorization))
        if site.token and authorization != f"Bearer {site.token}":
            self._send(Reply(401), path)
            return
        refused = site.refusal(path)
        reply = Reply(refused) if refused else site.answer(path) or Reply(404)
        self._send(reply, path)

    def _send(self, reply: Reply, path: str) -> None:
        site, body, status = self.server_of, reply.body, reply.status
        headers = dict(reply.headers)
        wanted = self.headers.get("Range", "")
        if status == 200 and wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last or len(body) - 1), len(body) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(body)}"
            body, status = body[begin : end + 1], 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if body and site.take(site.faults.wrong, path):
            body = bytes([body[0] ^ 1]) + body[1:]
        try:
            if site.take(site.faults.cuts, path):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self.close_connection = True
                return
            if path in site.faults.held:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                site.faults.go.wait()
                self.wfile.write(body[len(body) // 2 :])
                return
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLError):
            self.close_connection = True


def certificate(folder: Path) -> tuple[Path, Path, Path]:
    """For localhost, signed by an authority of its own: (authority, certificate, key)."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    authority, authority_key = folder / "ca.crt", folder / "ca.key"
    paths = folder / "localhost.crt", folder / "localhost.key"
    _openssl(*key, "-subj", "/CN=test authority", "-out", str(authority), "-keyout", str(authority_key))
    _openssl(
        *key, "-subj", "/CN=localhost", "-CA", str(authority), "-CAkey", str(authority_key), "-out", str(paths[0]),
        "-keyout", str(paths[1]), "-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
    )  # fmt: skip
    return authority, *paths


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", "req", "-x509", *arguments], check=True, capture_output=True)


def folder_of(files: Mapping[str, bytes], prefix: str = "/model/") -> Callable[[str], Reply | None]:
    def answer(path: str) -> Reply | None:
        body = files.get(path.removeprefix(prefix)) if path.startswith(prefix) else None
        return (
            None
            if body is None
            else Reply(body=body, headers={"ETag": f'"{len(body)}-{hash(body) & 0xFFFF}"'})
        )

    return answer
