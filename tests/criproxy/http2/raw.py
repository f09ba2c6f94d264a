"""Both ends of HTTP/2 spoken frame by frame, to see and to break its rules."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from attrs import frozen
from hpack.hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from criproxy.http2.endpoints import ClientConnection
from criproxy.http2.frames import Header
from criproxy.http2.http2_connection import PREFACE
from criproxy.http2.stream import Outbox

EMPTY = b"\x00\x00\x00\x00\x00"
"""An empty message."""
#: Long, since only tests that fail wait for it.
_PATIENCE = 20.0


def request(path: str) -> list[Header]:
    """The headers of a call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


VERSION = request("/runtime.v1.RuntimeService/Version")
ANSWER: list[Header] = [(b":status", b"200"), (b"content-type", b"application/grpc")]
FINE: list[Header] = [(b"grpc-status", b"0")]


@frozen
class Received:
    """What came on one stream, to its end.

    Args:
        lists: its header lists.
        data: its data.
        sizes: of its frames, without their heads.
    """

    lists: Sequence[Sequence[Header]]
    data: bytes
    sizes: Sequence[int]


class RawPeer:
    """One end of a connection.

    Args:
        connected: its socket.

    Attributes:
        encoder, decoder: the two states of header packing; strict, unlike many peers' own.
        max_frame: bytes in the data frames sent by `send_data`.
    """

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.settimeout(_PATIENCE)
        self.encoder = Encoder()
        self.decoder = Decoder(max_header_list_size=1 << 24)
        self.max_frame = 16384
        self._rest = b""

    def send(self, *frames: Frame) -> None:
        """Send frames in one piece."""
        self.socket.sendall(b"".join(f.serialize() for f in frames))

    def settings(self, **values: int) -> None:
        """Send settings by their names."""
        self.send(SettingsFrame(0, settings={getattr(SettingsFrame, k): values[k] for k in values}))

    def headers(
        self, stream: int, headers: Sequence[Header] | None = None, *flags: str
    ) -> HeadersFrame:
        """A frame with headers, of a good call if none are given."""
        block = self.encoder.encode(VERSION if headers is None else headers)
        return HeadersFrame(stream, block, flags=["END_HEADERS", *flags])

    def send_data(self, stream: int, data: bytes, window: int) -> None:
        """Send data as the windows allow.

        Args:
            stream: the stream.
            data: all of it.
            window: bytes that the stream's window allows already.
        """
        while data:
            while window <= 0:
                window += self.until(WindowUpdateFrame, stream).window_increment
            size = min(window, self.max_frame)
            self.send(DataFrame(stream, data[:size]))
            data = data[size:]
            window -= size

    def frames(self) -> Iterator[Frame]:
        """What comes, until the other side closes, be it without having read all."""
        while True:
            while len(self._rest) >= 9:
                length = int.from_bytes(self._rest[:3], "big")
                if len(self._rest) < 9 + length:
                    break
                frame, _ = Frame.parse_frame_header(memoryview(self._rest[:9]))
                frame.parse_body(memoryview(self._rest[9 : 9 + length]))
                self._rest = self._rest[9 + length :]
                yield frame
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                return
            if not data:
                return
            self._rest += data

    def until(self, kind: type[Any], stream: int | None = None) -> Any:
        """The next frame of a kind; what comes before it is dropped."""
        for frame in self.frames():
            if type(frame) is kind and (stream is None or frame.stream_id == stream):
                return frame
        raise AssertionError(f"closed without a {kind.__name__}")

    def unpacked(self, block: bytes) -> list[Header]:
        """A block's headers; call it for every one, since packing has a state."""
        return [(name, value) for name, value in self.decoder.decode(block, raw=True)]

    def allow_table(self, size: int) -> None:
        """Say how large a table the other side may pack with, and insist on it."""
        self.settings(HEADER_TABLE_SIZE=size)
        self.decoder.max_allowed_table_size = size

    def whole(self, stream: int) -> Received:
        """All that comes on a stream; nothing may come on others meanwhile but what has no headers.

        Raises:
            HPACKError: when headers are packed against the rules.
        """
        lists: list[list[Header]] = []
        data, block, sizes, ended = b"", b"", [], False
        for frame in self.frames():
            if frame.stream_id != stream:
                continue
            sizes.append(frame.body_len)
            ended = ended or "END_STREAM" in frame.flags
            if isinstance(frame, HeadersFrame | ContinuationFrame):
                block += frame.data
                if "END_HEADERS" in frame.flags:
                    lists.append(self.unpacked(block))
                    block = b""
            elif isinstance(frame, DataFrame):
                data += frame.data
            if ended and not block:
                return Received(lists, data, sizes)
        raise AssertionError(f"closed before the end of stream {stream}")

    def heard(self) -> None:
        """Wait until the other side has handled all that was sent."""
        self.send(PingFrame(0, b"are you "))
        while "ACK" not in self.until(PingFrame).flags:
            pass


class RawClient(RawPeer):
    """A client of the proxy."""

    def __init__(self, path: str) -> None:
        super().__init__(socket.socket(socket.AF_UNIX))
        self.socket.connect(path)

    def greet(self, **settings: int) -> RawClient:
        """Send what a client sends first."""
        self.socket.sendall(PREFACE)
        self.settings(**settings)
        return self

    def call_version(self, stream: int) -> None:
        """A good call, which has to be answered."""
        self.send(
            self.headers(stream),
            DataFrame(stream, EMPTY, flags=["END_STREAM"]),
        )
        assert b"containerd" in self.until(DataFrame, stream).data


class RawServer(RawPeer):
    """A server."""

    def greet(self, **settings: int) -> None:
        """Take the client's preface, and send what a server sends first."""
        preface = self.socket.recv(len(PREFACE), socket.MSG_WAITALL)
        assert preface == PREFACE
        self.settings(**settings)

    def called(self) -> int:
        """Wait for the next call; returns its stream."""
        frame: HeadersFrame = self.until(HeadersFrame)
        self.unpacked(frame.data)
        return frame.stream_id

    def answer(self, stream: int, message: bytes = EMPTY) -> None:
        """A good answer."""
        self.send(
            self.headers(stream, ANSWER),
            DataFrame(stream, message),
            self.headers(stream, FINE, "END_STREAM"),
        )


class RawRuntime:
    """A runtime that answers everything with an empty message, except where a test steps in.

    Args:
        path: its socket.

    Attributes:
        instead: by a call's path, what takes the answer's place; runs in the runtime's thread,
            which reads no further meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.instead: dict[str, Callable[[RawServer, int], None]] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connected: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        """Close everything."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(_PATIENCE)
        for connected in self._connected:
            # Its thread may have closed it.
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_PATIENCE)
        self._listener.close()

    def _accept(self) -> None:
        # Until it is shut down.
        with suppress(OSError):
            while True:
                connected, _ = self._listener.accept()
                self._connected.append(connected)
                self._threads.append(threading.Thread(target=self._serve, args=(connected,)))
                self._threads[-1].start()

    def _serve(self, connected: socket.socket) -> None:
        server = RawServer(connected)
        with connected, suppress(OSError):
            server.greet()
            # However long nobody calls.
            connected.settimeout(None)
            paths: dict[int, str] = {}
            for frame in server.frames():
                if isinstance(frame, HeadersFrame):
                    headers = dict(server.unpacked(frame.data))
                    paths[frame.stream_id] = headers[b":path"].decode()
                if isinstance(frame, HeadersFrame | DataFrame) and "END_STREAM" in frame.flags:
                    answer = self.instead.get(paths[frame.stream_id], RawServer.answer)
                    answer(server, frame.stream_id)


@asynccontextmanager
async def client_and_server(
    on_leaving: Callable[[str], None] = lambda reason: None, **settings: int
) -> AsyncIterator[tuple[ClientConnection, RawServer]]:
    """A connection of ours and its server, which has sent these settings.

    The server's methods block: call them with `asyncio.to_thread`.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        async with asyncio.timeout(2 * _PATIENCE):
            _, connection = await asyncio.get_running_loop().create_unix_connection(
                lambda: ClientConnection(Outbox(), on_leaving), sock=ours
            )
            server = RawServer(theirs)
            await asyncio.to_thread(server.greet, **settings)
            await connection.settled
            yield connection, server
    await connection.closed
