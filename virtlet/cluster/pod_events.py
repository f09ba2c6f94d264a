"""Events on pods, posted to the API server without flooding it.

Whoever tells of something never waits: it is put into a bounded list, and a thread posts. What
happens again is counted in the event that is there. Each pod, and the node, may have so many in a
time; what is more waits, and is counted meanwhile.
"""

import logging
import math
import secrets
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from attrs import define, frozen

from virtlet.cluster.api import ANSWER_TIME, CONNECT_TIME, Cluster, explained
from virtlet.errors import NotFound, PermissionDenied, Unavailable, VirtletError
from virtlet.model.pod import PodMetadata
from virtlet.threads import BackOff, Worker

log = logging.getLogger(__name__)

COMPONENT = "virtlet"
MOST_WAITING = 512
"""Events of different meaning that wait; more are dropped, and counted in the log."""
MOST_KNOWN = 2048
"""Events whose repetition is counted in them."""
LONGEST_MESSAGE = 1000
"""Characters; the API server takes 1024 bytes of most."""
OF_POD, OF_NODE = (10, 60.0), (30, 2.0)
"""Events at once, and seconds until there may be one more."""
REFUSED_PAUSE = 300.0
"""Seconds for which nothing is posted to a namespace that took none."""
_ASCII_ROOM = 236
"""Characters of a pod's name in that of its events, which has 253."""


@frozen
class Told:
    """Something that happened to a pod."""

    pod: PodMetadata
    reason: str
    """In CamelCase, for programs."""
    message: str
    """For people; no secret, and nothing that a guest chose freely."""
    warning: bool = False
    series: str = ""
    """What the same event is known by, where its message changes."""
    at: int = 0
    """Nanoseconds since the epoch."""

    @property
    def key(self) -> tuple[str, str, str]:
        """What is one event."""
        return self.pod.uid, self.reason, self.series or self.message


@define
class _Waiting:
    told: Told
    """The last of them."""
    count: int = 1
    first: int = 0


@define
class _Posted:
    name: str
    count: int


@define
class _Budget:
    """So many at once, and one more after each pause."""

    most: int
    pause: float
    left: float
    at: float

    def wait(self, now: float) -> float:
        """Seconds until there may be one."""
        self.left = min(self.most, self.left + (now - self.at) / self.pause)
        self.at = now
        return 0.0 if self.left >= 1 else (1 - self.left) * self.pause


class PodEvents:
    """Posts events; `tell` is for any thread.

    Args:
        cluster: where to.
        node: this node's name.
        clock: monotonic seconds.
    """

    def __init__(
        self, cluster: Cluster, node: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cluster = cluster
        self._node = node or socket.gethostname()
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: OrderedDict[tuple[str, str, str], _Waiting] = OrderedDict()
        self._dropped = 0
        self._known: OrderedDict[tuple[str, str, str], _Posted] = OrderedDict()
        self._of_pods: OrderedDict[str, _Budget] = OrderedDict()
        self._of_node = _Budget(*OF_NODE, OF_NODE[0], clock())
        self._refused: OrderedDict[str, float] = OrderedDict()
        """Namespace to when it may be tried again."""
        self._problem = ""
        self._stopped = False
        self._back_off = BackOff(1.0, 60.0)
        self._again = 0.0
        """When the server is asked again after a failure; not sooner, whoever tells meanwhile."""
        self._worker = Worker("pod-events", self.work)

    def stop(self) -> None:
        """Post no more; waits for what is under way for at most two seconds."""
        self._stopped = True
        self._worker.stop(2.0)

    def tell(self, told: Told) -> None:
        """Have something posted, where there is a way to an API server; returns at once."""
        if not self._cluster.configured or self._stopped:
            return
        with self._lock:
            known = self._waiting.get(told.key)
            if known is not None:
                known.told = told
                known.count += 1
            elif len(self._waiting) < MOST_WAITING:
                self._waiting[told.key] = _Waiting(told, first=told.at)
            else:
                self._dropped += 1
        self._worker.start()
        self._worker.wake()

    def work(self) -> float:
        """Post what may be posted now; returns the seconds until there may be more."""
        if (left := self._again - time.monotonic()) > 0:
            return left
        while not self._stopped:
            waiting, pause = self._next()
            if waiting is None:
                return pause
            try:
                self._post(waiting)
            except (PermissionDenied, NotFound) as error:
                self._refuse(waiting.told.pod.namespace, error)
            except Unavailable as error:
                self._put_back(waiting)
                self._tell_of(error, logging.WARNING)
                pause = self._back_off.pause()
                self._again = time.monotonic() + pause
                return pause
            except VirtletError as error:  # it is not taken, and will not be
                self._tell_of(error, logging.WARNING)
            else:
                self._back_off.reset()
                self._problem = ""
        return math.inf

    def _next(self) -> tuple[_Waiting | None, float]:
        """What may be posted now, taken out of what waits; else None, and for how long."""
        now = self._clock()
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            shortest = math.inf
            chosen = None
            if self._waiting:
                shortest = self._of_node.wait(now)
            if shortest == 0.0:
                shortest = math.inf
                for key in self._waiting:
                    pause = self._of_pod(key[0], now).wait(now)
                    if pause == 0.0:
                        chosen = key
                        break
                    shortest = min(shortest, pause)
            found = self._waiting.pop(chosen) if chosen else None
            if chosen:
                self._of_node.left -= 1
                self._of_pods[chosen[0]].left -= 1
        if dropped:
            log.warning("events of pods dropped", extra={"count": dropped})
        return found, shortest

    def _of_pod(self, uid: str, now: float) -> _Budget:
        budget = self._of_pods.get(uid)
        if budget is None:
            budget = self._of_pods[uid] = _Budget(*OF_POD, OF_POD[0], now)
            _bound(self._of_pods)
        return budget

    def _put_back(self, waiting: _Waiting) -> None:
        """It is tried again, with what was told of the same meanwhile."""
        key = waiting.told.key
        with self._lock:
            newer = self._waiting.get(key)
            if newer is None:
                self._waiting[key] = waiting
            else:
                newer.count += waiting.count
                newer.first = waiting.first
            self._waiting.move_to_end(key, last=False)

    def _post(self, waiting: _Waiting) -> None:
        told = waiting.told
        pod, now = told.pod, self._clock()
        if self._refused.get(pod.namespace, 0.0) > now:
            return
        client = self._cluster.client()
        from kubernetes.client import CoreV1Api

        api: Any = CoreV1Api(client)
        plain = {"_request_timeout": (CONNECT_TIME, ANSWER_TIME), "_preload_content": False}
        posted = self._known.get(told.key)
        with explained(f"events of namespace {pod.namespace}", "post"):
            if posted is not None:
                change = {
                    "count": posted.count + waiting.count,
                    "lastTimestamp": _time(told.at),
                    "message": _short(told.message),
                }
                try:
                    api.patch_namespaced_event(posted.name, pod.namespace, change, **plain)
                    posted.count += waiting.count
                    return
                except Exception as error:
                    # A cluster forgets events after an hour; then it is a new one.
                    if getattr(error, "status", 0) != 404:
                        raise
                    del self._known[told.key]
            name = f"{pod.name[:_ASCII_ROOM]}.{secrets.token_hex(8)}"
            api.create_namespaced_event(pod.namespace, self._event(name, waiting), **plain)
        self._known[told.key] = _Posted(name, waiting.count)
        _bound(self._known)

    def _event(self, name: str, waiting: _Waiting) -> dict[str, Any]:
        """A core/v1 Event, as `kubectl describe` shows them."""
        told = waiting.told
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": told.pod.namespace},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": "Pod",
                "name": told.pod.name,
                "namespace": told.pod.namespace,
                "uid": told.pod.uid,
            },
            "type": "Warning" if told.warning else "Normal",
            "reason": told.reason,
            "message": _short(told.message),
            "count": waiting.count,
            "firstTimestamp": _time(waiting.first),
            "lastTimestamp": _time(told.at),
            "source": {"component": COMPONENT, "host": self._node},
            "reportingComponent": COMPONENT,
            "reportingInstance": self._node,
        }

    def _refuse(self, namespace: str, error: VirtletError) -> None:
        """Leave a namespace alone for a while: it goes away, or we may post nothing there."""
        self._refused[namespace] = self._clock() + REFUSED_PAUSE
        _bound(self._refused)
        self._tell_of(error, logging.INFO)

    def _tell_of(self, error: VirtletError, level: int) -> None:
        """Log a problem once, as long as it stays the same."""
        if str(error) != self._problem:
            self._problem = str(error)
            log.log(level, "events of pods not posted", extra={"problem": self._problem})


def _bound(known: "OrderedDict[Any, Any]") -> None:
    while len(known) > MOST_KNOWN:
        known.popitem(last=False)


def _time(at: int) -> str:
    return datetime.fromtimestamp(at // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _short(message: str) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in message)
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"
