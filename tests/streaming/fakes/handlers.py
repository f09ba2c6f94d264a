"""Handlers that serve sessions with what this machine has: processes, a pty, loopback ports."""

import asyncio
import contextlib
import fcntl
import os
import pty
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path

from attrs import Factory, define

from virtlet.streaming import (
    AttachRequest,
    ExecRequest,
    ExitStatus,
    InputStream,
    OutputStream,
    PortForwardRequest,
    SessionStreams,
)


async def copy(
    read: Callable[[int], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]
) -> None:
    while piece := await read(65536):
        await write(piece)


@define
class LocalExec:
    """Runs the command as a process of this machine, in a directory of the test."""

    directory: Path
    running: set[int] = Factory(set)
    delay: float = 0.0
    """Seconds until it starts the command."""

    async def run(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        await asyncio.sleep(self.delay)
        if request.tty:
            return await self._on_terminal(request, streams)
        process = await asyncio.create_subprocess_exec(
            *request.command,
            cwd=self.directory,
            stdin=asyncio.subprocess.PIPE if request.stdin else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self.running.add(process.pid)
        feed = asyncio.ensure_future(_feed(streams.stdin, process.stdin))
        try:
            assert process.stdout
            assert process.stderr
            await asyncio.gather(
                copy(process.stdout.read, _writer(streams.stdout)),
                copy(process.stderr.read, _writer(streams.stderr)),
            )
            return _status(await process.wait())
        finally:
            feed.cancel()
            await asyncio.gather(feed, return_exceptions=True)
            await self._end(process)

    async def _on_terminal(self, request: ExecRequest, streams: SessionStreams) -> ExitStatus:
        ours, theirs = pty.openpty()
        # As long as the kernel holds our side open, the slave's output stays readable.
        with open(ours, "r+b", buffering=0) as master:
            process = await asyncio.create_subprocess_exec(
                *request.command,
                cwd=self.directory,
                stdin=theirs,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
            self.running.add(process.pid)
            os.close(theirs)
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader()
            copied = os.fdopen(os.dup(ours), "rb", buffering=0)
            transport, _ = await loop.connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), copied
            )

            async def type_in() -> None:
                assert streams.stdin
                while piece := await streams.stdin.read():
                    master.write(piece)

            async def follow_size() -> None:
                async for size in streams.resizes:
                    cells = struct.pack("HHHH", size.height, size.width, 0, 0)
                    fcntl.ioctl(master, termios.TIOCSWINSZ, cells)

            helpers = [asyncio.ensure_future(follow_size())]
            if streams.stdin:
                helpers.append(asyncio.ensure_future(type_in()))
            try:
                with contextlib.suppress(OSError):  # EIO is how a pty says that all closed it
                    await copy(reader.read, _writer(streams.stdout))
                return _status(await process.wait())
            finally:
                for helper in helpers:
                    helper.cancel()
                await asyncio.gather(*helpers, return_exceptions=True)
                transport.close()
                await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        # Nothing closes a subprocess's transport when its pipes were left unread.
        process._transport.close()  # type: ignore[attr-defined]
        self.running.discard(process.pid)


async def _feed(stdin: InputStream | None, pipe: asyncio.StreamWriter | None) -> None:
    if stdin is None or pipe is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while piece := await stdin.read():
            pipe.write(piece)
            await pipe.drain()
    pipe.close()


def _writer(stream: OutputStream | None) -> Callable[[bytes], Awaitable[None]]:
    async def drop(_: bytes) -> None:
        return

    return stream.write if stream else drop


def _status(code: int) -> ExitStatus:
    return ExitStatus(code if code >= 0 else 128 - code)


@define
class FakeConsole:
    """A console that greets, echoes in capitals, and lets go at Ctrl-]."""

    async def run(self, request: AttachRequest, streams: SessionStreams) -> None:
        if streams.stdout:
            await streams.stdout.write(f"console of {request.container_id}\n".encode())
        while streams.stdin and (piece := await streams.stdin.read()):
            text, detach, _ = piece.partition(b"\x1d")
            if streams.stdout and text:
                await streams.stdout.write(text.upper())
            if detach:
                break


@define
class LoopbackDialer:
    """Takes this machine's loopback for the pod."""

    dialled: list[int] = Factory(list)

    async def dial(self, request: PortForwardRequest, port: int) -> socket.socket:
        self.dialled.append(port)
        target = socket.socket()
        target.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(target, ("127.0.0.1", port))
        except BaseException:
            target.close()
            raise
        return target
