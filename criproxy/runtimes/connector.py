"""Connects to one runtime: dials with back-off and updates its inventory while it is there."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import time

from criproxy.http2.endpoints import ClientConnection
from criproxy.http2.stream import Outbox
from criproxy.methods import BY_NAME
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.availability import NotAnswered
from criproxy.runtimes.last_known import INVENTORY, InventoryFile, to_save
from criproxy.runtimes.runtime import Runtime

log = logging.getLogger(__name__)

#: Age in seconds at which the inventory is asked for again.
_INVENTORY_AGE = 10.0
#: Seconds from a change to the next question for the inventory, so that many changes cost one.
_SETTLE = 0.3
#: After a connection of this many seconds the back-off starts again.
_GOOD = 5.0
_VERSION = BY_NAME["Version"]
_UPDATE = BY_NAME["UpdateRuntimeConfig"]


class Connector:
    """Keeps one runtime connected until cancelled.

    Args:
        runtime: the runtime.
        outbox: the process' one.
        saved: the file that keeps its last known items over restarts, or None.
    """

    def __init__(self, runtime: Runtime, outbox: Outbox, saved: InventoryFile | None) -> None:
        self._runtime = runtime
        self._outbox = outbox
        self._saved = saved
        self._saved_update = runtime.last.pending_update
        self._leaving = asyncio.Event()
        #: Set once the first attempt has ended.
        self.tried = asyncio.Event()

    async def run(self) -> None:
        """Dial, watch, dial again."""
        dial = self._runtime.config.dial
        wait = dial.first_wait
        while True:
            started = time.monotonic()
            try:
                reason = await self._once()
            except Exception as error:
                # Without this loop the runtime would never be dialled again.
                log.exception("keeping %s failed", self._runtime.where)
                reason = f"criproxy failed ({type(error).__name__}); see its log"
            self._runtime.connection_lost(reason)
            if time.monotonic() - started > _GOOD:
                wait = dial.first_wait
            await asyncio.sleep(wait)
            wait = min(wait * 2, dial.longest_wait)

    async def _once(self) -> str:
        """Dial, keep the connection until its end, and return why it ended."""
        if self._runtime.last.pending_update is not self._saved_update:
            # Save a request that came while the runtime is away.
            await self.save()
        try:
            connection = await self._connect()
        except (OSError, RpcError) as error:
            return _reason(error, self._runtime.config.dial.timeout)
        finally:
            self.tried.set()
        self._runtime.connection_made(connection)
        # Save the inventory soon, although it is up to date.
        self._runtime.check_now.set()
        try:
            reason = await self._watch(connection)
        finally:
            # Running calls may end on a connection that the runtime is leaving.
            connection.drain()
        self._runtime.connection_lost(reason)
        await self.save()
        return reason

    async def _connect(self) -> ClientConnection:
        """Return a connection on which the runtime has answered and listed its inventory."""
        runtime = self._runtime
        path = runtime.config.socket
        if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(f"{path} is not a socket")
        self._leaving.clear()
        loop = asyncio.get_running_loop()
        connection: ClientConnection | None = None
        try:
            async with asyncio.timeout(runtime.config.dial.timeout):
                _, connection = await loop.create_unix_connection(
                    lambda: ClientConnection(self._outbox, self._on_leaving), path
                )
                await connection.settled
                await runtime.call(_VERSION, b"", opener=connection.open)
            await runtime.update_inventory((*INVENTORY, "Status"), connection.open)
            await self._catch_up(connection)
        except BaseException:
            if connection is not None:
                connection.drain()
            raise
        return connection

    async def _catch_up(self, connection: ClientConnection) -> None:
        """Send the last UpdateRuntimeConfig request that the runtime missed."""
        runtime = self._runtime
        update = runtime.last.pending_update
        if update is None:
            update = runtime.last_update
        if update is None:
            return
        try:
            seconds = runtime.read_timeout(None)
            await runtime.call(_UPDATE, update, timeout=seconds, opener=connection.open)
        except RpcError as error:
            log.warning("%s did not take the runtime configuration: %s", runtime.where, error)
            runtime.update_sent(update, error)
        else:
            runtime.update_sent(update)

    def _on_leaving(self, reason: str) -> None:
        self._leaving.set()
        # No new calls from here on; running calls may end.
        self._runtime.connection_lost(reason)

    async def _watch(self, connection: ClientConnection) -> str:
        """Update the inventory from time to time; return why the connection ended."""
        runtime = self._runtime
        leaving = asyncio.ensure_future(self._leaving.wait())
        gone = (connection.closed, leaving)
        try:
            while True:
                check = asyncio.ensure_future(runtime.check_now.wait())
                await asyncio.wait(
                    (*gone, check),
                    timeout=_INVENTORY_AGE
                    if runtime.answering
                    else runtime.config.dial.longest_wait,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                check.cancel()
                if runtime.check_now.is_set():
                    await asyncio.wait(gone, timeout=_SETTLE, return_when=asyncio.FIRST_COMPLETED)
                if connection.closed.done():
                    return connection.closed.result()
                if not runtime.connected:
                    return runtime.reason
                runtime.check_now.clear()
                await self._update_inventory(connection)
        finally:
            leaving.cancel()

    async def _update_inventory(self, connection: ClientConnection) -> None:
        runtime = self._runtime
        was_silent = not runtime.answering
        seconds = runtime.read_timeout(None)
        if was_silent:
            try:
                await runtime.call(_VERSION, b"", timeout=seconds, opener=connection.open)
            except NotAnswered as error:
                if runtime.connected:
                    runtime.set_silent(f"no answer to Version: {error.message}")
                return
            except RpcError:
                # Any status is an answer.
                pass
        if runtime.last.pending_update is not None:
            await self._catch_up(connection)
        if was_silent and runtime.connected:
            runtime.set_answering()
        names = INVENTORY if was_silent else runtime.outdated_inventory(_INVENTORY_AGE)
        try:
            await runtime.update_inventory(names, connection.open)
        except RpcError as error:
            # Keep the known inventory; it is asked for again soon.
            log.info("%s does not list its pods: %s", runtime.where, error.message)
        await self.save()

    async def save(self) -> None:
        """Write the last known items to disk, if they changed."""
        self._saved_update = self._runtime.last.pending_update
        if self._saved is not None:
            await asyncio.to_thread(self._saved.save, to_save(self._runtime.last))


def _reason(error: Exception, timeout: float) -> str:
    if isinstance(error, RpcError):
        if error.code == Code.UNIMPLEMENTED:
            return f"it does not serve the CRI v1 ({error.message})"
        return f"{error.message} ({error.code.name})"
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, FileNotFoundError):
        return "its socket is not there"
    if isinstance(error, ConnectionRefusedError):
        return "no process listens on its socket"
    return str(error) or type(error).__name__
