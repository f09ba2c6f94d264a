"""The tokens in the URLs: random, for one connection, for a minute."""

import secrets
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from attrs import frozen

from virtlet.errors import ResourceExhausted

R = TypeVar("R")
Kind = TypeVar("Kind")

_RANDOM_BYTES = 24


@frozen
class _Pending(Generic[R]):
    request: R
    deadline: float


class TokenStore(Generic[R]):
    """Keeps each request until its token is redeemed or too old. Safe to use from any thread.

    Args:
        lifetime: seconds.
        limit: tokens at once; more is refused, so that a client cannot fill the memory.
        clock: monotonic seconds.
    """

    def __init__(
        self, lifetime: float, limit: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._lifetime = lifetime
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        # Insertion order is order of age: all live equally long.
        self._pending: dict[str, _Pending[R]] = {}

    def issue(self, request: R) -> str:
        """Return a new token, safe in a URL path, for the request.

        Raises:
            ResourceExhausted: too many tokens wait to be used.
        """
        with self._lock:
            self._drop_expired()
            if len(self._pending) >= self._limit:
                raise ResourceExhausted(
                    f"{self._limit} streaming URLs wait to be used; try again in "
                    f"{self._lifetime:g} seconds"
                )
            token = secrets.token_urlsafe(_RANDOM_BYTES)
            self._pending[token] = _Pending(request, self._clock() + self._lifetime)
            return token

    def redeem(self, token: str, kind: type[Kind]) -> Kind | None:
        """Return the token's request, once; None for one unknown, used, too old or another kind."""
        with self._lock:
            self._drop_expired()
            pending = self._pending.get(token)
            if pending is None or not isinstance(pending.request, kind):
                return None
            del self._pending[token]
            return pending.request

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._pending:
            token, oldest = next(iter(self._pending.items()))
            if oldest.deadline > now:
                return
            del self._pending[token]
