"""Forwarded connections: bytes between one stream of a client and one socket of a pod."""

import asyncio
import logging
import os
import socket
from contextlib import suppress
from typing import Protocol

from attrs import frozen

from virtlet.errors import VirtletError
from virtlet.streaming.handlers import PortDialer, PortForwardRequest, StreamClosed
from virtlet.streaming.lifetime import SessionLimits, cancel, first_of

logger = logging.getLogger(__name__)

_CHUNK = 256 * 1024


class DataStream(Protocol):
    """The client's side of a forwarded connection."""

    async def read(self, limit: int = ...) -> bytes:
        """Return 1 to `limit` bytes, b"" once the client finished; StreamClosed if it broke."""

    async def write(self, data: bytes) -> None:
        """Send data; StreamClosed if the client is gone."""

    async def close(self) -> None:
        """End our way of the stream."""

    async def abort(self) -> None:
        """Tear the stream down: what the client got is not all there was."""

    async def torn(self) -> None:
        """Return once either side tore the stream down."""


class ErrorStream(Protocol):
    """Where the client is told why a connection failed; ends when the connection does."""

    async def write(self, data: bytes) -> None:
        """Send a message; StreamClosed if the client is gone."""

    async def close(self) -> None:
        """End the stream."""


class ForwardFailed(Exception):
    """The pod cannot be reached; the message is for the client."""


@frozen
class Forwarder:
    """Connects streams of one client to ports of its pod."""

    dialer: PortDialer
    request: PortForwardRequest
    limits: SessionLimits

    async def forward(self, port: int, data: DataStream, error: ErrorStream) -> None:
        """Carry one connection to its end, then close both streams.

        The error stream carries why the pod could not be reached and nothing else: kubectl ends
        all its forwarding when it reads anything there, and a pod that resets a connection
        means only that one.
        """
        try:
            try:
                target = await self._dial(port)
            except ForwardFailed as failure:
                logger.info("sandbox %s: %s", self.request.sandbox_id, failure)
                await error.write(str(failure).encode())
                await data.close()
            else:
                await _Connection(data, error, target, self.limits.half_closed_seconds).carry()
        except OSError as broken:
            logger.debug("sandbox %s, port %d: %s", self.request.sandbox_id, port, broken)
            with suppress(StreamClosed):
                await data.abort()
        # kubectl waits for this before it lets go of its own side.
        with suppress(StreamClosed):
            await error.close()

    async def _dial(self, port: int) -> socket.socket:
        what = f"error forwarding port {port} to pod {self.request.sandbox_id}"
        seconds = self.limits.dial_seconds
        try:
            async with asyncio.timeout(seconds):
                target = await self.dialer.dial(self.request, port)
        except VirtletError as error:
            raise ForwardFailed(f"{what}: {error}") from error
        except TimeoutError:
            raise ForwardFailed(f"{what}: no answer within {seconds:g} seconds") from None
        except OSError as error:
            reason = os.strerror(error.errno).lower() if error.errno else str(error)
            raise ForwardFailed(f"{what}: {reason}") from error
        except Exception as error:
            logger.exception("%s", what)
            raise ForwardFailed(
                f"{what}: an internal error; see the log of the node's virtlet"
            ) from error
        target.setblocking(False)
        with suppress(OSError):  # a socket of another family has no such delay
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return target


class _Connection:
    """One forwarded connection on its way.

    Args:
        patience: seconds without data after which a connection that only the client keeps open
            is given up.
    """

    def __init__(
        self, data: DataStream, error: ErrorStream, target: socket.socket, patience: float
    ) -> None:
        self._data = data
        self._error = error
        self._target = target
        self._patience = patience
        self._sent = 0
        self._refused = False

    async def carry(self) -> None:
        """Carry both ways to their ends and close the socket.

        Raises:
            OSError: the client tore the stream down (StreamClosed), or the pod the connection.
        """
        try:
            await first_of(self._both_ways(), self._data.torn())
        finally:
            self._target.close()

    async def _both_ways(self) -> None:
        up = asyncio.ensure_future(self._to_pod())
        try:
            await self._to_client()
            await self._error.close()
            # The pod has said all: the client may go on as long as it really does.
            seen = -1
            while not up.done() and not self._refused and seen != self._sent:
                seen = self._sent
                await asyncio.wait((up,), timeout=self._patience)
            if not up.done():
                raise TimeoutError("the pod has ended and the client has not")
            up.result()
        finally:
            await cancel(up)

    async def _to_pod(self) -> None:
        loop = asyncio.get_running_loop()
        while piece := await self._data.read(_CHUNK):
            if self._refused:
                continue
            try:
                await loop.sock_sendall(self._target, piece)
                self._sent += len(piece)
            except OSError:
                # It may still have an answer. What the client goes on to send is dropped, so
                # that it does not hold up the other connections.
                self._refused = True
        if not self._refused:
            self._target.shutdown(socket.SHUT_WR)

    async def _to_client(self) -> None:
        loop = asyncio.get_running_loop()
        while piece := await loop.sock_recv(self._target, _CHUNK):
            await self._data.write(piece)
        await self._data.close()
