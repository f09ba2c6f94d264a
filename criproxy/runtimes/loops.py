"""Proxies in a circle: every call of ours says which proxies it came through.

A proxy that gets a call that came through itself refuses it with a mark in the trailers, which
travels back as far as the proxy whose mark it is. That one then knows which of its runtimes leads
back to it. Marks of others pass on with a call's metadata, so the circle may be of any length.
"""

from __future__ import annotations

from collections.abc import Sequence

from criproxy.http2.headers import Header
from criproxy.rpc.status import Code, RpcError

#: Metadata of calls, one header for each proxy on the way; and of refusals, as the mark.
LOOP_HEADER = b"criproxy-loop"


def refuse_own(headers: Sequence[Header], identity: bytes) -> None:
    """Let a call pass that has not been here before.

    Raises:
        RpcError: FAILED_PRECONDITION, marked, when it has.
    """
    mark = (LOOP_HEADER, identity)
    if mark in headers:
        raise RpcError(
            Code.FAILED_PRECONDITION,
            "this is the calling criproxy itself: a socket in a loop",
            (mark,),
        )


def leads_back(error: RpcError, identity: bytes) -> bool:
    """Whether a call ended because it came back to the proxy with this identity."""
    return (LOOP_HEADER, identity) in error.trailers
