"""An HTTP server of images on the loopback interface, which misbehaves on demand."""

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from attrs import define, field, frozen

_RANGE = re.compile(r"bytes=(\d+)-")


@define
class Resource:
    """What is at a path, and how it is served."""

    content: bytes = b""
    etag: str = ""
    """With its quotes; a leading W/ makes it weak."""
    last_modified: str = ""
    ranges: bool = True
    status: int = 0
    """Answered instead, when not 0."""
    code: int = 200
    """Answered with the content, where it is all of it."""
    location: str = ""
    """Where a redirecting status leads."""
    authorization: str = ""
    """Demanded, when not empty."""
    challenge: Mapping[str, str] = field(factory=dict)
    """Headers of the answer that demands it."""
    breaks: list[int] = field(factory=list)
    """For each coming answer, after how many bytes of the body it breaks."""
    pause: float = 0.0
    """Seconds before the body."""
    drips_after: int = -1
    """Bytes of the body after which it comes slowly: ten a second; -1 for never."""
    length: bool = True
    """Whether the length is told."""
    chunked: bool = False
    """Whether the end is told instead, by an empty last chunk."""
    headers: Mapping[str, str] = field(factory=dict)
    on_request: Callable[[], None] | None = None


@frozen
class Request:
    """A request that arrived."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    sent: list[int] = field(factory=list)
    """Bytes of the body that were sent."""


@define
class ImageServer:
    """A running server."""

    url: str
    resources: dict[str, Resource] = field(factory=dict)
    requests: list[Request] = field(factory=list)
    tunnels: dict[str, int] = field(factory=dict)
    """As a proxy: `HOST:PORT` asked for to the port of the loopback interface it leads to."""

    @property
    def sent(self) -> int:
        """Bytes of bodies sent so far."""
        return sum(sum(request.sent) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    images: ImageServer

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers)
        self.images.requests.append(request)
        resource = self.images.resources.get(self.path)
        if resource is None:
            self._head(404, {"Content-Length": "0"})
            return
        if resource.on_request:
            resource.on_request()
        if resource.authorization and headers.get("authorization") != resource.authorization:
            self._head(401, {"Content-Length": "0", **resource.challenge})
        elif resource.status:
            location = {"Location": resource.location} if resource.location else {}
            self._head(resource.status, {"Content-Length": "0", **location, **resource.headers})
        else:
            self._serve(resource, request)

    def do_CONNECT(self) -> None:
        self.close_connection = True
        port = self.images.tunnels.get(self.path)
        if port is None:
            self._head(502, {"Content-Length": "0"})
            return
        self._head(200, {})
        with socket.create_connection(("127.0.0.1", port)) as target:
            back = threading.Thread(target=_pump, args=(target, self.connection))
            back.start()
            _pump(self.connection, target)
            back.join()

    def _serve(self, resource: Resource, request: Request) -> None:
        told = dict(resource.headers)
        if resource.etag:
            told["ETag"] = resource.etag
        if resource.last_modified:
            told["Last-Modified"] = resource.last_modified
        if resource.etag and request.headers.get("if-none-match") == resource.etag:
            self._head(304, told)
            return
        start, status, size = 0, resource.code, len(resource.content)
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        same = request.headers.get("if-range", resource.etag) in (
            resource.etag,
            resource.last_modified,
        )
        if asked and resource.ranges and same:
            start = int(asked[1])
            if start >= size:
                self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
                return
            status = 206
            told.setdefault("Content-Range", f"bytes {start}-{size - 1}/{size}")
        if resource.chunked:
            told["Transfer-Encoding"] = "chunked"
        elif resource.length:
            told["Content-Length"] = str(size - start)
        self._head(status, told)
        self._body(resource, request, resource.content[start:])

    def _body(self, resource: Resource, request: Request, body: bytes) -> None:
        self.close_connection = True
        last = b"0\r\n\r\n"
        if resource.breaks:
            body, last = body[: resource.breaks.pop(0)], b""
        request.sent.append(len(body))
        if resource.pause:
            self.wfile.flush()
            time.sleep(resource.pause)
        if resource.drips_after >= 0:
            self.wfile.write(body[: resource.drips_after])
            for at in range(resource.drips_after, len(body)):
                self.wfile.write(body[at : at + 1])
                time.sleep(0.1)
            return
        if resource.chunked:
            body = b"%x\r\n%b\r\n%b" % (len(body), body, last)
        self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


@contextmanager
def image_server(
    context: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> Iterator[ImageServer]:
    """Run a server, with TLS where a context is given."""
    handler = type("Handler", (_Handler,), {"protocol_version": "HTTP/1.1"})
    server = _Server((address, 0), handler)
    scheme = "http"
    if context is not None:
        scheme = "https"
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    images = ImageServer(f"{scheme}://{address}:{server.server_address[1]}")
    handler.images = images  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield images
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@frozen
class Trickle:
    """A server whose answer never gets beyond its headers."""

    url: str
    asked: threading.Event = field(factory=threading.Event)
    """Set once a client has sent something."""
    gone: threading.Event = field(factory=threading.Event)
    """Set once that client has closed its connection."""


@contextmanager
def trickling_server(*, answers: bool = True, scheme: str = "http") -> Iterator[Trickle]:
    """Run a server for one client.

    Args:
        answers: whether a byte of its headers comes often enough for no read to time out; else
            nothing comes at all.
        scheme: of its address; it speaks no TLS.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    server = Trickle(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
    over = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as client:
            client.recv(65536)
            server.asked.set()
            client.settimeout(0.02)
            if answers:
                client.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not over.is_set():
                if answers:
                    client.sendall(b"a")
                with contextlib.suppress(TimeoutError):
                    if not client.recv(65536):
                        break
        if not over.is_set():
            server.gone.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        over.set()
        # Wakes a thread that nobody has connected to.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()
