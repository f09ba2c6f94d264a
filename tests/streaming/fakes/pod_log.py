"""Reads a pod's log as a kubelet does: lines of `TIME STREAM TAG TEXT`, where P is part of one."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

_PAUSE = 0.1
"""Seconds between looks at a log that is followed."""


async def text(path: Path, *, follow: bool) -> AsyncIterator[bytes]:
    """What the guest printed, up to the end as it is now, or for ever."""
    with path.open("rb") as log:
        rest = b""
        while True:
            *lines, rest = (rest + log.read()).split(b"\n")
            if lines:
                yield b"".join(map(_payload, lines))
            if not follow:
                return
            await asyncio.sleep(_PAUSE)


def _payload(line: bytes) -> bytes:
    time, stream, tag, payload = line.split(b" ", 3)
    assert datetime.fromisoformat(time.decode()).tzinfo is not None
    assert stream in (b"stdout", b"stderr")
    assert tag in (b"F", b"P")
    return payload + b"\n" * (tag == b"F")
