"""A web console before kubectl and the stand-in API server."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from attrs import define, field, frozen

from tests.fakes.rfb import turns, update
from tests.streaming.fakes.api_server import ApiServer
from tests.streaming.fakes.handlers import LocalExec
from virtlet.errors import FailedPrecondition
from virtlet.kubectl.cluster import Kubectl
from virtlet.kubectl.ui import kubectl_proxy
from virtlet.kubectl.webconsole.api import KubectlProxy
from virtlet.kubectl.webconsole.assets import Assets
from virtlet.kubectl.webconsole.gate import OwnGate
from virtlet.kubectl.webconsole.server import Shown, WebConsole
from virtlet.streaming import (
    AttachRequest,
    Handlers,
    OutputStream,
    PortForwardRequest,
    SessionStreams,
    StreamingServer,
)

SECRET = "of-this-run"
WIDTH, HEIGHT = 64, 48
COLOUR = (200, 40, 90)


@define
class Screen:
    """An RFB server (RFC 6143) whose screen has one colour; keeps the keys that are typed."""

    keys: list[int] = field(factory=list)
    absent: bool = False
    task: "asyncio.Task[None] | None" = None

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        assert port == 5900
        if self.absent:
            raise FailedPrecondition("the VM has no screen")
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        self.task = asyncio.create_task(self._serve(reader, writer))
        return theirs

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            for said, answered in turns(WIDTH, HEIGHT):
                writer.write(said)
                await reader.readexactly(answered)
            while kind := await reader.read(1):
                await self._message(kind[0], reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    async def _message(
        self, kind: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if kind == 2:  # SetEncodings
            (count,) = struct.unpack(">xH", await reader.readexactly(3))
            await reader.readexactly(4 * count)
            return
        body = await reader.readexactly({0: 19, 3: 9, 4: 7, 5: 5}[kind])
        if kind == 3 and not body[0]:  # all of the screen
            pixels = bytes((*COLOUR, 0)) * (WIDTH * HEIGHT)
            writer.write(update(((0, 0, WIDTH, HEIGHT), pixels)))
        if kind == 4:
            down, key = struct.unpack(">B2xI", body)
            if down:
                self.keys.append(key)


@define
class SharedConsole:
    """A console that greets, and whose readers all see in capitals what any of them types."""

    readers: list[OutputStream] = field(factory=list)

    async def run(self, request: AttachRequest, streams: SessionStreams) -> None:
        assert streams.stdin
        assert streams.stdout
        await streams.stdout.write(f"console of {request.container_id}\n".encode())
        self.readers.append(streams.stdout)
        try:
            while piece := await streams.stdin.read():
                for reader in self.readers:
                    await reader.write(piece.upper())
        finally:
            self.readers.remove(streams.stdout)


@frozen
class Served:
    """A console, and what is behind it."""

    address: str
    """With the secret."""
    screen: Screen
    serial: SharedConsole
    log: Path
    api: ApiServer

    @property
    def port(self) -> int:
        return int(self.address.split(":")[2].split("/")[0])


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Served]:
    """Serve a console of one VM pod."""
    screen, serial, log = Screen(), SharedConsole(), directory / "0.log"
    log.write_text("2026-01-01T00:00:00Z stdout F <b>booting</b>\n")
    handlers = Handlers(exec=LocalExec(directory), attach=serial, ports=screen)
    streaming = StreamingServer("127.0.0.1", 0, handlers, tls=None)
    await streaming.start()
    try:
        async with ApiServer(streaming, log) as api:
            kubectl = Kubectl((f"--server={api.url}", "--kubeconfig=/dev/null"), "default")
            async with kubectl_proxy(kubectl) as (proxy, _):
                shown, gate = Shown("default", ("fast",)), partial(OwnGate, secret=SECRET)
                console = WebConsole(KubectlProxy(proxy), shown, gate, Assets.find())
                try:
                    yield Served(await console.start(), screen, serial, log, api)
                finally:
                    await console.stop()
    finally:
        await streaming.stop()
