"""The Stream* lists: the answers of the unary lists, in portions."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from virtlet.core.cri.calls import Call, Kind

PORTION = 100
"""Items of one message."""


def streamed(
    name: str,
    kind: Kind,
    items: Callable[[Any], Sequence[Any]],
    reply: Callable[[list[Any]], Any],
) -> Call:
    """The streamed form of a list call.

    Args:
        name: `Service.Method` of the streamed call; its request has the fields of the unary one.
        kind: where the unary call is answered.
        items: what a request lists.
        reply: makes a message of a portion of it.
    """

    async def stream(request: Any) -> AsyncIterator[Any]:
        if kind is Kind.READ:
            found = list(items(request))
        else:
            found = list(await asyncio.to_thread(items, request))
        for start in range(0, len(found), PORTION):
            yield reply(found[start : start + PORTION])

    return Call(name, Kind.STREAM, stream)
