"""One piece of work at a time for each key; callers that come meanwhile get its outcome, too."""

import contextvars
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from typing import Generic, TypeVar

T = TypeVar("T")
_POLL = 0.2


class Abandoned(Exception):
    """The caller does not wait for the outcome any more; the work goes on for the others."""


class _Flight(Generic[T]):
    """A piece of work and those who want its outcome."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()
        self.callers: list[Callable[[], bool]] = []
        self.given_up = False

    def wanted(self) -> bool:
        """Whether anybody still waits."""
        self.given_up = not any(wanted() for wanted in tuple(self.callers))
        return not self.given_up


class SingleFlight(Generic[T]):
    """Shares work that is under way."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[Hashable, _Flight[T]] = {}

    def run(
        self,
        key: Hashable,
        work: Callable[[Callable[[], bool]], T],
        wanted: Callable[[], bool],
    ) -> T:
        """Do the work, or wait for the caller that does it already; they share its error.

        Args:
            key: what the work is.
            work: does it, on the first caller's thread, as long as its argument says that
                anybody waits.
            wanted: whether this caller still waits; asked from any caller's thread.

        Raises:
            Abandoned: another caller works, and `wanted` became false.
        """
        while True:
            with self._lock:
                flight = self._under_way.get(key)
                first = flight is None
                if flight is None:
                    flight = self._under_way[key] = _Flight()
                flight.callers.append(wanted)
            if first:
                return self._fly(key, flight, work)
            try:
                return wait_for(flight.future, wanted)
            except Exception:
                # Given up just before we joined: do the work ourselves.
                if not flight.given_up or not wanted():
                    raise

    def _fly(self, key: Hashable, flight: _Flight[T], work: Callable[[Callable[[], bool]], T]) -> T:
        try:
            outcome = work(flight.wanted)
        except BaseException as error:
            self._land(key)
            flight.future.set_exception(error)
            raise
        self._land(key)
        flight.future.set_result(outcome)
        return outcome

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._under_way[key]


def apart(work: Callable[[], T]) -> "Future[T]":
    """Do work on a thread of its own, which may be left behind."""
    outcome: Future[T] = Future()

    def fly() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(fly,), name="image-fetch", daemon=True).start()
    return outcome


def wait_for(future: Future[T], wanted: Callable[[], bool]) -> T:
    """Wait for an outcome for as long as somebody wants it.

    Raises:
        Abandoned: `wanted` became false first.
    """
    while True:
        try:
            return future.result(timeout=_POLL)
        except NotYet:
            if future.done():
                raise  # The work itself ran out of time.
            if not wanted():
                raise Abandoned from None
