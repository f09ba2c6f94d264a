"""Connections to libvirt: shared by a few calls each, opened again when libvirt comes back."""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
from attrs import define

from virtlet.errors import Unavailable
from virtlet.model.hypervisor import HypervisorHealth
from virtlet.plugins.libvirt_qemu import failures
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)

_INTERVAL = 1.0
"""Seconds between two probes of a daemon."""
_LATE = 3.0
"""Seconds without an answer after which the daemon counts as hanging."""

CALLS_PER_CONNECTION = 5
"""A daemon serves that many calls of one connection at a time (its max_client_requests)."""
MOST_CONNECTIONS = 20
"""As many as a daemon has workers by default (its max_workers): more could not be served."""
_KEEPALIVE = (5, 3)
"""Seconds between probes and how many may go unanswered: calls to a hung daemon fail after 20 s."""
_BACK_OFF = (0.1, 3.0)
"""Seconds to wait after the first failed attempt to connect, and at most."""


class LivenessProbe:
    """Finds out whether a daemon still answers: one small call a second, on its own connection.

    A closed socket shows a daemon that died, not one that hangs. libvirt's keep-alive finds both,
    but it ends the connection with all calls under way, so that it must be patient with a node
    that is merely slow.

    Args:
        connect: opens a connection.
    """

    def __init__(self, connect: Callable[[], Any]) -> None:
        self._connect = connect
        self._asked_at: float | None = None
        self._connection: Any = None
        self._worker = Worker("libvirt-liveness", self._ask, drain=True)

    @property
    def hangs(self) -> bool:
        """Whether a call has been without an answer for too long."""
        asked_at = self._asked_at
        return asked_at is not None and time.monotonic() - asked_at > _LATE

    def start(self) -> None:
        """Begin to ask."""
        self._worker.start(_INTERVAL)

    def stop(self) -> None:
        """Ask no more; idempotent. A call that is open is not waited for."""
        self._worker.stop(0.0)

    def _ask(self) -> float:
        if self._worker.stopping:
            connection, self._connection = self._connection, None
            if connection is not None:
                with contextlib.suppress(libvirt.libvirtError):
                    connection.close()
            return math.inf
        self._asked_at = time.monotonic()
        try:
            if self._connection is None:
                self._connection = self._connect()
            # A call that a daemon serves even if all its workers are busy.
            self._connection.getLibVersion()
        except libvirt.libvirtError:
            self._connection = None  # a daemon that is gone does not hang
        finally:
            self._asked_at = None
        return _INTERVAL


@define(eq=False)
class _Slot:
    """One connection and how many calls are on it."""

    connection: Any
    calls: int = 0
    leave: Callable[[], None] = lambda: None
    """Undoes what was registered on it; a connection with registrations is never closed."""

    def close(self) -> None:
        """Close it, whether its other end still exists or not."""
        for step in (self.connection.unregisterCloseCallback, self.leave, self.connection.close):
            with contextlib.suppress(libvirt.libvirtError):
                step()


class Connections:
    """All connections to one libvirt.

    Args:
        uri: what to open.
        on_connect: called with each new main connection, before it is used; registers for events
            and returns what undoes that. An error of libvirt in it counts as a failed attempt.
        on_back: called on the thread that reconnects, once a lost libvirt is back.
        shared: all calls share the main connection, as suits the embedded driver.
    """

    def __init__(
        self,
        uri: str,
        on_connect: Callable[[Any], Callable[[], None]],
        on_back: Callable[[], None],
        *,
        shared: bool,
    ) -> None:
        self._uri = uri
        self._on_connect = on_connect
        self._on_back = on_back
        self._shared = shared
        self._lock = threading.Lock()
        self._slots: list[_Slot] = []
        """The main connection first; empty while libvirt is away."""
        self._lost: list[_Slot] = []
        """Connections whose other end is gone, to be closed by the thread that reconnects."""
        self._problem = "not connected yet"
        self._back_off = BackOff(*_BACK_OFF)
        self._reconnector = Worker("libvirt-reconnect", self._reconnect)
        self._liveness = LivenessProbe(self._open_connection)

    def open(self) -> None:
        """Connect; from then on a lost connection is made again by itself. Idempotent.

        Raises:
            Unavailable: libvirt does not answer.
        """
        if self._reconnector.running:
            return
        try:
            self._connect()
        except libvirt.libvirtError as error:
            raise Unavailable(
                f"cannot connect to libvirt at {self._uri}: {failures.short(error)}"
            ) from None
        self._reconnector.start()
        if not self._shared:
            # The thread of an earlier probe may still hang in its call.
            self._liveness = LivenessProbe(self._open_connection)
            self._liveness.start()

    def close(self) -> None:
        """Disconnect; idempotent."""
        if not self._reconnector.running:
            return
        self._liveness.stop()
        self._reconnector.stop()
        self._drop("closed")

    @contextlib.contextmanager
    def use(self) -> Iterator[Any]:
        """A connection with room for one more call.

        Raises:
            Unavailable: libvirt is away.
        """
        slot = self._take()
        try:
            yield slot.connection
        except libvirt.libvirtError as error:
            if failures.is_lost(error):
                self._lose(slot, failures.short(error))
            raise
        finally:
            with self._lock:
                slot.calls -= 1
                if slot in self._lost:
                    self._reconnector.wake()

    def health(self) -> HypervisorHealth:
        """Whether libvirt answers, as far as is known now; does not block."""
        with self._lock:
            problem = "" if self._slots else self._problem
        if not problem and self._liveness.hangs:
            problem = "it hangs"
        if not problem:
            return HypervisorHealth(ready=True)
        message = f"libvirt at {self._uri} does not answer: {problem}"
        return HypervisorHealth(ready=False, reason="LibvirtUnavailable", message=message)

    @property
    def _connected(self) -> bool:
        with self._lock:
            return bool(self._slots)

    def _take(self) -> _Slot:
        with self._lock:
            slot = self._freest()
            if self._shared or slot.calls < CALLS_PER_CONNECTION:
                slot.calls += 1
                return slot
            full = len(self._slots) >= MOST_CONNECTIONS
        if not full:
            with contextlib.suppress(libvirt.libvirtError):
                return self._add(self._open_connection())
        with self._lock:
            slot = self._freest()
            slot.calls += 1
            return slot

    def _freest(self) -> _Slot:
        if not self._slots:
            raise Unavailable(f"libvirt at {self._uri} does not answer: {self._problem}")
        return min(self._slots, key=lambda slot: slot.calls)

    def _add(self, connection: Any) -> _Slot:
        slot = _Slot(connection, calls=1)
        with self._lock:
            if self._slots:
                self._slots.append(slot)
        return slot

    def _open_connection(self) -> Any:
        connection = libvirt.open(self._uri)
        if not self._shared:
            connection.setKeepAlive(*_KEEPALIVE)
        return connection

    def _connect(self) -> None:
        connection = self._open_connection()
        try:
            leave = self._on_connect(connection)
        except libvirt.libvirtError:
            with contextlib.suppress(libvirt.libvirtError):
                connection.close()
            raise
        slot = _Slot(connection, leave=leave)

        def closed(_connection: Any, reason: int, _opaque: None) -> None:
            self._lose(slot, f"the connection was closed (reason {reason})")

        connection.registerCloseCallback(closed, None)
        with self._lock:
            self._slots = [slot]

    def _lose(self, slot: _Slot, problem: str) -> None:
        """Give up all connections if the main one is gone, else only this one."""
        with self._lock:
            if slot not in self._slots:
                return
            main = slot is self._slots[0]
            gone = self._slots if main else [slot]
            self._slots = [other for other in self._slots if other not in gone]
            self._lost += gone
            if main:
                self._problem = problem
        self._reconnector.wake()
        if main:
            log.warning("libvirt lost", extra={"problem": problem})

    def _drop(self, problem: str) -> None:
        with self._lock:
            self._lost += self._slots
            self._slots = []
            self._problem = problem
        self._close_lost()

    def _close_lost(self) -> None:
        """Close lost connections that no call uses; libvirt would free what the call works with."""
        with self._lock:
            idle = [slot for slot in self._lost if slot.calls == 0]
            self._lost = [slot for slot in self._lost if slot.calls > 0]
        for slot in idle:
            slot.close()

    def _reconnect(self) -> float:
        self._close_lost()
        if self._connected:
            return math.inf
        try:
            self._connect()
        except libvirt.libvirtError as error:
            with self._lock:
                self._problem = failures.short(error)
            return self._back_off.pause()
        self._back_off.reset()
        log.warning("libvirt is back")
        self._on_back()
        return 0.0
