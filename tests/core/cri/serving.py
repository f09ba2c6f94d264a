"""A server on a socket, with the calls a test is about."""

import asyncio
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from virtlet.core.cri.calls import Call, CallKind
from virtlet.core.cri.grpc_server import CriServer
from virtlet.core.cri.subjects import Subjects
from virtlet.core.store.store import Store
from virtlet.cri import api_pb2 as cri
from virtlet.model.hypervisor import HypervisorHealth


def healthy() -> HypervisorHealth:
    """The health of a hypervisor that answers."""
    return HypervisorHealth(ready=True)


class Serving:
    """A server on a thread of its own.

    Args:
        socket: where.
        calls: makes the calls for an event loop; all others are there and good for nothing.
        health: the hypervisor's.
    """

    def __init__(
        self,
        socket: Path,
        calls: Callable[[asyncio.AbstractEventLoop], Sequence[Call]],
        health: Callable[[], HypervisorHealth] = healthy,
    ) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._store = Store(Path(self._directory.name, "virtlet.db"))
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        try:
            served = calls(self.loop)
            everything = [*served, *_others(served)]
            self.server = CriServer(socket, everything, health, Subjects(self._store))
            self.run(self.server.start())
        except BaseException:
            self._end()
            raise

    def run(self, work: Any) -> None:
        """Have the server's loop do something."""
        asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self, grace: float = 1.0) -> None:
        """Stop the server; idempotent."""
        if not self.loop.is_closed():
            self.run(self.server.stop(grace))
            self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
        self._store.close()
        self._directory.cleanup()


def _others(calls: Sequence[Call]) -> list[Call]:
    """Every call that is served elsewhere, so that the server's table is complete."""
    named = {call.name for call in calls}
    return [
        Call(
            f"{service.name}.{method.name}",
            CallKind.STREAM if method.server_streaming else CallKind.READ,
            lambda request: None,
        )
        for service in cri.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if f"{service.name}.{method.name}" not in named
    ]
