"""Methods that a runtime does not answer in time, although it is there."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from attrs import define
from google.protobuf.message import DecodeError

from criproxy.methods import BY_NAME, Method
from criproxy.rpc.outgoing import Done, Reply
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.availability import NotAnswered
from criproxy.runtimes.last_known import INVENTORY, LastKnown

log = logging.getLogger(__name__)

#: Methods whose empty request asks for everything.
_COMPLETE = frozenset(
    (
        *INVENTORY,
        "Status",
        "ImageFsInfo",
        "ListContainerStats",
        "ListPodSandboxStats",
        "ListPodSandboxMetrics",
        "ListMetricDescriptors",
    )
)
#: Factor by which the proxy's own call waits longer than a client's for a late answer.
_PATIENCE = 6.0
_VERSION = BY_NAME["Version"]

#: Makes a unary call with an empty request; arguments are method, seconds and callback.
Ask = Callable[[Method, float, Done], object]


@define(eq=False)
class _Late:
    #: Age of the last known answer, as a monotonic time.
    since: float
    reason: str


class TimedOutMethods:
    """The late methods of one runtime.

    A late method is called again in the background until it is in time. A call of Version shows
    whether the whole runtime is silent.

    Args:
        where: the runtime's name in messages.
        limit: seconds within which an answer is in time.
        pause: seconds between two calls.
        ask: makes a call to the runtime.
        silent: called with the reason when the runtime answers nothing.
    """

    def __init__(
        self, where: str, limit: float, pause: float, ask: Ask, silent: Callable[[str], None]
    ) -> None:
        self._where = where
        self._limit = limit
        self._pause = pause
        self._ask = ask
        self._silent = silent
        self._late: dict[str, _Late] = {}
        self._probing = False

    def __contains__(self, name: str) -> bool:
        """Whether this method is late."""
        return name in self._late

    def since(self, name: str) -> float:
        """Return the time (monotonic) of the last known answer, or now if the method is in time."""
        late = self._late.get(name)
        return time.monotonic() if late is None else late.since

    def reason(self, name: str) -> str:
        """Return why a method is late; empty if it is in time."""
        late = self._late.get(name)
        return "" if late is None else late.reason

    def clear(self) -> None:
        """Forget all late methods: the runtime has connected again."""
        self._late.clear()

    def add(self, method: Method, seconds: float, last: LastKnown) -> None:
        """Add a method that was not answered in time; store later answers in `last`."""
        reason = f"no answer to {method.name} within {seconds:g} s"
        if method.name not in self._late and (method.streaming or method.name in _COMPLETE):
            log.warning("%s: %s", self._where, reason)
            self._late[method.name] = late = _Late(time.monotonic(), reason)
            if not method.streaming:
                self._again(method, late, last)
        self._probe(reason)

    def _probe(self, reason: str) -> None:
        if self._probing:
            return
        self._probing = True

        def done(result: Reply | RpcError) -> None:
            self._probing = False
            if isinstance(result, NotAnswered) and result.code == Code.DEADLINE_EXCEEDED:
                self._silent(f"{reason}, nor to Version")

        self._ask(_VERSION, self._limit, done)

    def _again(self, method: Method, late: _Late, last: LastKnown) -> None:
        if self._late.get(method.name) is not late:
            return
        asked = time.monotonic()

        def done(result: Reply | RpcError) -> None:
            if self._late.get(method.name) is not late:
                return
            if isinstance(result, Reply):
                with suppress(DecodeError):
                    last.store(method.name, result.payload, asked)
                late.since = asked
            if not isinstance(result, NotAnswered) and time.monotonic() - asked <= self._limit:
                log.info("%s answers to %s again", self._where, method.name)
                del self._late[method.name]
                return
            loop = asyncio.get_running_loop()
            loop.call_later(self._pause, self._again, method, late, last)
            if isinstance(result, NotAnswered):
                self._probe(late.reason)

        self._ask(method, self._limit * _PATIENCE, done)
