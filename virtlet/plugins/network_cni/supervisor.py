"""Keeps the pods' DHCP servers running."""

import logging
import math
import os
import select
import threading
import time

from attrs import define, field

from virtlet.errors import VirtletError
from virtlet.host import netns
from virtlet.host.processes import ended, reap
from virtlet.plugins.network_cni.dhcp import DhcpServer
from virtlet.threads import BackOff, Worker

_log = logging.getLogger(__name__)

_DELAYS = (0.1, 30.0)
"""Seconds until a server is started again: at first, and at most."""
_STEADY = 10.0
"""Seconds a server has to run until its next end counts as the first one."""


@define
class _Watched:
    server: DhcpServer
    pidfd: int | None
    started: float
    delays: BackOff = field(factory=lambda: BackOff(*_DELAYS))
    due: float = 0.0
    """When to start it again, on the monotonic clock; for one that does not run."""
    starting: threading.Lock = field(factory=threading.Lock)
    """Held while it is started again; `stop` waits for that."""


class Supervisor:
    """Watches servers on one thread, and restarts those that end.

    The servers go on when the manager ends, and the next one adopts them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}
        self._worker = Worker("dhcp-supervisor", self._watch)
        self._worker.start()

    def start(self, pod_id: str, server: DhcpServer) -> None:
        """Start a pod's server and keep it running.

        Raises:
            VirtletError: it does not start; it is not kept.
        """
        self._keep(pod_id, _Watched(server, server.start(), time.monotonic()))

    def adopt(self, pod_id: str, server: DhcpServer) -> None:
        """Keep the server of a pod of an earlier manager running; it may have ended meanwhile.

        A pod whose set-up did not come as far as its server has none.
        """
        if server.configured and netns.exists(server.netns):
            self._keep(pod_id, _Watched(server, server.find(), time.monotonic()))

    def stop(self, pod_id: str, server: DhcpServer) -> None:
        """End a pod's server for good. Idempotent."""
        with self._lock:
            watched = self._watched.pop(pod_id, None)
        self._worker.wake()
        running = None
        if watched is not None:
            with watched.starting:
                running = watched.pidfd
        if running is None:
            running = server.find()
        if running is not None:
            server.end(running)

    def close(self) -> None:
        """Stop watching; the servers go on."""
        self._worker.stop()
        for watched in self._watched.values():
            if watched.pidfd is not None:
                os.close(watched.pidfd)
        self._watched.clear()

    def _keep(self, pod_id: str, watched: _Watched) -> None:
        with self._lock:
            self._watched[pod_id] = watched
        self._worker.wake()

    def _watch(self) -> float:
        """Start again what has ended and is due; returns the seconds until the next is."""
        now = time.monotonic()
        with self._lock:
            for pod_id, watched in self._watched.items():
                _notice_end(pod_id, watched, now)
            stopped = [(i, w) for i, w in self._watched.items() if w.pidfd is None]
        for pod_id, watched in stopped:
            if watched.due <= now:
                self._start_again(pod_id, watched)
        with self._lock:
            known = list(self._watched.values())
        self._worker.files = {each.pidfd: select.POLLIN for each in known if each.pidfd is not None}
        dues = [each.due for each in known if each.pidfd is None]
        return min(dues, default=math.inf) - time.monotonic()

    def _start_again(self, pod_id: str, watched: _Watched) -> None:
        """Start a server, unless it was stopped; it may take long, and no other pod waits."""
        with watched.starting:
            with self._lock:
                if self._worker.stopping or self._watched.get(pod_id) is not watched:
                    return
            try:
                watched.pidfd = watched.server.start()
                watched.started = time.monotonic()
            # RuntimeError: no thread can be started.
            except (VirtletError, OSError, RuntimeError) as error:
                _postpone(watched)
                _log.warning("the DHCP server of pod %s does not start: %s", pod_id, error)


def _notice_end(pod_id: str, watched: _Watched, now: float) -> None:
    if watched.pidfd is None or not ended(watched.pidfd):
        return
    reap(watched.pidfd)
    os.close(watched.pidfd)
    watched.pidfd = None
    if now - watched.started >= _STEADY:
        watched.delays.reset()
    _postpone(watched)
    _log.warning("the DHCP server of pod %s ended; it is started again", pod_id)


def _postpone(watched: _Watched) -> None:
    watched.due = time.monotonic() + watched.delays.pause()
