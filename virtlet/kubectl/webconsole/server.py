"""The console's HTTP server: its page and assets, and what the API server answers.

    browser ── 127.0.0.1:PORT ──► WebConsole ── unix socket ──► kubectl proxy ──► API server
    browser ──► authenticating proxy ── 127.0.0.1:PORT ──► WebConsole ── TLS ──► API server

The user's credentials stay with kubectl; in a cluster their token comes with each request, and goes
on with it. What a pod's author or guest has written (names, logs,
events) reaches the browser as data alone: no answer of the API server is shown as a page.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable
from urllib.parse import parse_qs

import h11
from attrs import asdict, frozen
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import generate_accept_token

from virtlet.http_port import HttpPort, respond, this_task
from virtlet.kubectl.generate import manifest
from virtlet.kubectl.webconsole.api import Api
from virtlet.kubectl.webconsole.assets import Assets
from virtlet.kubectl.webconsole.gate import START, Asked, OwnGate, ProxiedGate, Refused
from virtlet.kubectl.webconsole.start import NotStarted, checked

_HEAD_LIMIT = 32 << 10
_CHUNK = 64 << 10
_MANIFEST_LIMIT = 1 << 20
_REASON_LIMIT = 64 << 10
_SECONDS = 10.0
"""For a browser to send a manifest or an end, and for an API server to say why it refuses."""
_SECURITY = (
    "X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    "Cross-Origin-Resource-Policy: same-origin\r\nCross-Origin-Opener-Policy: same-origin\r\n"
    "Cache-Control: no-store\r\n"
)
_PAGE = (
    # xterm.js and noVNC write style elements; a cursor's shape is an image by its data.
    "Content-Security-Policy: default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'; "
    "form-action 'none'; base-uri 'none'\r\n"
)
_DATA = "Content-Security-Policy: sandbox; default-src 'none'\r\n"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}
_TEXT = "text/plain; charset=utf-8"
_ANNOTATIONS = {
    "flavor": "VirtletFlavor",
    "size": "VirtletRootVolumeSize",
    "keys": "VirtletSSHKeys",
    "data": "VirtletCloudInitUserData",
}
"""Fields of the form to annotations."""


@frozen
class Shown:
    """What the page is to show."""

    namespace: str
    """Whose pods; "" for all."""
    classes: tuple[str, ...]
    """RuntimeClasses of VMs, beside those that are called as ours."""


class WebConsole:
    """Serves the console to a browser.

    Args:
        api: the way to the API server.
        shown: what the page is to show.
        gate: what is let in, by the port that is listened on.
        assets: what the browser gets.
    """

    def __init__(
        self, api: Api, shown: Shown, gate: Callable[[int], OwnGate | ProxiedGate], assets: Assets
    ) -> None:
        self._api = api
        self._shown = shown
        self._gates = gate
        self._gate = gate(0)
        self._assets = assets
        self._port = HttpPort(self._serve, _HEAD_LIMIT)
        self.listens = ("", 0)
        """Address and port, once it does."""
        self._checking = asyncio.Lock()

    async def start(self, port: int = 0) -> str:
        """Listen on loopback; returns the address to open, on one's own machine with the secret.

        Raises:
            OSError: the port cannot be listened on.
        """
        self.listens = await self._port.start("127.0.0.1", port)
        self._gate = self._gates(self.listens[1])
        return self._gate.address

    async def stop(self) -> None:
        """Close the port, and the sessions."""
        await self._port.stop()

    async def _serve(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            asked = self._gate.read(head)
            if asked.upgrade:
                await self._session(asked, reader, writer)
            elif asked.is_api:
                await self._forward(self._request(asked), False, reader, writer)
            elif asked.path == START:
                request = await self._request_of_a_pod(asked, reader)
                await self._forward(request, False, reader, writer)
            elif cookie := self._gate.login(asked):
                _respond(writer, "303 See Other", b"", f"Location: /\r\nSet-Cookie: {cookie}\r\n")
            else:
                self._answer(asked, writer)
        except Refused as refused:
            respond(writer, refused.status, f"{refused.why}\n".encode(), _TEXT)

    def _answer(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        match asked.path:
            case "/shown":
                body, kind, extra = json.dumps(asdict(self._shown)), "application/json", _DATA
                _respond(writer, "200 OK", body.encode(), extra, kind)
            case "/manifest":
                _respond(writer, "200 OK", _manifest(asked.query, self._shown).encode(), _DATA)
            case path if file := self._assets.files.get(path):
                _respond(writer, "200 OK", file.read_bytes(), _PAGE, _KINDS[file.suffix])
            case _:
                raise Refused("404 Not Found", "the console has no such page")

    async def _request_of_a_pod(self, asked: Asked, reader: asyncio.StreamReader) -> bytes:
        """What the API server is asked to start; the manifest that was sent is looked at first."""
        try:
            length = int(asked.headers.get("content-length", ""))
        except ValueError:
            raise Refused("411 Length Required", "a manifest has a length") from None
        if not 0 < length <= _MANIFEST_LIMIT:
            raise Refused(
                "413 Content Too Large", f"a manifest has {_MANIFEST_LIMIT} bytes at most"
            )
        try:
            async with asyncio.timeout(_SECONDS):
                text = await reader.readexactly(length)
        except (TimeoutError, asyncio.IncompleteReadError):
            raise Refused("400 Bad Request", "the manifest did not come whole") from None
        try:
            async with self._checking:
                namespace, pod = await asyncio.to_thread(checked, text, self._shown.namespace)
        except NotStarted as error:
            raise Refused("422 Unprocessable Content", str(error)) from None
        body = json.dumps(pod).encode()
        lines = [f"POST /api/v1/namespaces/{namespace}/pods HTTP/1.1", *self._api.headers(asked)]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body

    async def _session(
        self, asked: Asked, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Serve a session. Why there is none is told in one of our own: a browser's page sees no
        answer but a WebSocket's."""
        try:
            await self._forward(self._request(asked), True, reader, writer)
        except Refused as refused:
            writer.write(_session_that_says(asked, refused.why))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await reader.read(_CHUNK)  # the browser's end of it

    async def _forward(
        self,
        request: bytes,
        upgrade: bool,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._port.admit(this_task())
        try:
            api_reader, api_writer = await self._api.connect()
        except OSError as error:
            raise Refused("502 Bad Gateway", self._api.away(error)) from None
        try:
            api_writer.write(request)
            answer = await api_reader.readuntil(b"\r\n\r\n")
            status, _, rest = answer.partition(b"\r\n")
            if upgrade and b" 101 " not in status:
                raise Refused("502 Bad Gateway", await _reason(answer, api_reader))
            extra = b"" if upgrade else (_SECURITY + _DATA).encode()
            writer.write(status + b"\r\n" + extra + rest)
            # A browser that goes away ends the API server's side, and the other way round. What it
            # sends beyond its one request is a session's, or nobody's: the gate has not seen it.
            onward = _copy(reader, api_writer) if upgrade else _ignore(reader)
            ways = [asyncio.create_task(_copy(api_reader, writer)), asyncio.create_task(onward)]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            raise Refused("502 Bad Gateway", "the API server gave no answer") from None
        finally:
            api_writer.transport.abort()

    def _request(self, asked: Asked) -> bytes:
        """What the API server is asked: nothing of the browser's headers but a WebSocket's, and
        whose request it is."""
        target = f"{asked.path}?{asked.query}" if asked.query else asked.path
        lines = [f"GET {target} HTTP/1.1", *self._api.headers(asked)]
        if asked.upgrade:
            lines += ["Connection: Upgrade", "Upgrade: websocket"]
            for name in ("key", "version", "protocol"):
                if value := asked.headers.get(f"sec-websocket-{name}"):
                    lines.append(f"Sec-WebSocket-{name.capitalize()}: {value}")
        else:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _manifest(query: str, shown: Shown) -> str:
    """The manifest of what the form says."""
    said = {name: values[0] for name, values in parse_qs(query).items()}
    return manifest(
        said.get("name", ""),
        said.get("image", ""),
        {"cpu": said.get("cpu", "1"), "memory": said.get("memory", "1Gi")},
        said.get("class", "virtlet"),
        {key: said.get(field, "") for field, key in _ANNOTATIONS.items()},
        said.get("namespace", shown.namespace),
    )


async def _reason(answer: bytes, api_reader: asyncio.StreamReader) -> str:
    """Why an API server gives no session, by its answer, of which the head has been read."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(answer)
    body = b""
    try:
        async with asyncio.timeout(_SECONDS):
            while len(body) < _REASON_LIMIT:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(await api_reader.read(_CHUNK))
                elif isinstance(event, h11.Data):
                    body += event.data
                elif not isinstance(event, h11.Response):
                    break
    except (TimeoutError, h11.RemoteProtocolError):
        pass  # What came of it is told.
    text = body.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        status = answer.partition(b"\r\n")[0].decode("latin-1").partition(" ")[2]
        return text or f"the API server gives no session: {status}"


def _session_that_says(asked: Asked, why: str) -> bytes:
    """A WebSocket of one message: text, as no session of the API has."""
    accepted = generate_accept_token(asked.headers.get("sec-websocket-key", "").encode())
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade"]
    lines.append(f"Sec-WebSocket-Accept: {accepted.decode()}")
    if wanted := asked.headers.get("sec-websocket-protocol"):
        lines.append(f"Sec-WebSocket-Protocol: {wanted.split(',')[0].strip()}")
    ours = Connection(ConnectionType.SERVER)
    said = ours.send(TextMessage(data=why))
    said += ours.send(CloseConnection(code=CloseReason.NORMAL_CLOSURE))
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + said


async def _ignore(reader: asyncio.StreamReader) -> None:
    while await reader.read(_CHUNK):
        pass


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(_CHUNK):
        writer.write(piece)
        await writer.drain()


def _respond(
    writer: asyncio.StreamWriter, status: str, body: bytes, extra: str, kind: str = _TEXT
) -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Connection: close\r\n{_SECURITY}{extra}\r\n".encode() + body)
