"""Whether a call's error is the runtime's own word, or stands for a word that never came."""

from __future__ import annotations

from criproxy.rpc.status import Code, PeerError, RpcError

#: Statuses of calls that were not answered.
_SILENCE = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
#: A runtime that keeps the deadline of our call itself can be a little faster than we are.
_NEARLY = 0.9


class NotAnswered(RpcError):
    """A runtime gave a call no answer: it is away or silent, or was not in time."""


def judged(
    error: RpcError, *, seconds: float, timeout: float | None = None, leaving: bool
) -> RpcError:
    """The error that a call ended with, as a `NotAnswered` if it is none of the runtime's.

    Args:
        error: what the call ended with.
        seconds: that it took.
        timeout: seconds that the runtime was told it has.
        leaving: whether the runtime has gone or is about to: it may have ended all calls then.
    """
    overdue = timeout is not None and seconds >= _NEARLY * timeout
    in_time = error.code != Code.DEADLINE_EXCEEDED or not overdue
    own = isinstance(error, PeerError) and not leaving and in_time
    if error.code == Code.CANCELLED or (error.code in _SILENCE and not own):
        return NotAnswered(error.code, error.message, error.trailers)
    return error
