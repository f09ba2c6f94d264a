"""Runs Debian's kubectl against the stand-in API server."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from attrs import frozen


@frozen
class Result:
    code: int
    stdout: bytes
    stderr: bytes


@frozen
class Kubectl:
    """kubectl with a home of its own and one of its two framings."""

    server: str
    home: Path
    websocket: bool

    @property
    def framing(self) -> str:
        """What it asks the server to upgrade to; refused that, it may try the other one."""
        return "websocket" if self.websocket else "SPDY/3.1"

    @property
    def environment(self) -> dict[str, str]:
        """What it runs with."""
        switches = ("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS")
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "KUBECONFIG": "/dev/null",
            # WebSocket is what it does by itself.
            **({} if self.websocket else dict.fromkeys(switches, "false")),
        }

    async def run(self, *arguments: str, stdin: bytes = b"") -> Result:
        async with self.started(*arguments) as process:
            stdout, stderr = await process.communicate(stdin)
            assert process.returncode is not None
            return Result(process.returncode, stdout, stderr)

    @asynccontextmanager
    async def started(
        self, *arguments: str, stdin: IO[bytes] | None = None, tty: int | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Run kubectl until the end of the block; on a terminal, where one is given."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "kubectl",
            f"--server={self.server}",
            *arguments,
            env=self.environment,
            cwd=self.home,
            stdin=stdin or tty or pipe,
            stdout=tty or pipe,
            stderr=tty or pipe,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
            process._transport.close()  # type: ignore[attr-defined]


async def forwarded(process: asyncio.subprocess.Process) -> int:
    """Return the local port of a running `kubectl port-forward`."""
    assert process.stdout
    line = (await process.stdout.readline()).decode()
    found = re.search(r"127\.0\.0\.1:(\d+)", line)
    assert found, line
    return int(found[1])


async def shown_until(terminal: IO[bytes], text: bytes, limit: float = 10) -> bytes:
    """Return what a terminal shows up to the text, which comes within `limit` seconds."""
    loop = asyncio.get_running_loop()
    os.set_blocking(terminal.fileno(), False)
    shown = b""
    async with asyncio.timeout(limit):
        while text not in shown:
            arrived = asyncio.Event()
            loop.add_reader(terminal, arrived.set)
            await arrived.wait()
            loop.remove_reader(terminal)
            shown += terminal.read(4096) or b""
    return shown
