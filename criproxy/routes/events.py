"""GetContainerEvents: the events of all runtimes in one stream that outlives each of them.

When a runtime comes back, what happened meanwhile is told from its lists before its own events go
on. A runtime without events is told from its lists every second, as a kubelet itself would do.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing, suppress
from typing import Any

from attrs import frozen

from criproxy.methods import Method, parse_request, parse_response
from criproxy.routes.forward import forward
from criproxy.routes.runtime_part import named, outside_of
from criproxy.routes.together import together
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.changes import Changes
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime

_POLL = 1.0
#: Between two subscriptions to a runtime whose event streams end by themselves.
_AGAIN = 0.2
#: What subscribing again would not mend.
_FINAL = (Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)


@frozen
class Events:
    """The rule.

    Args:
        owners: knows the runtimes.
    """

    owners: Owners

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Answer a subscriber."""
        raw = call.payload()
        parse_request(method, raw)
        call.endless = True
        if len(self.owners.runtimes) == 1 and self.owners.primary.answering:
            forward(call, self.owners.primary, method)
            return
        call.send_metadata(())
        followers = (_Follower(call, method, raw, r) for r in self.owners.runtimes)
        call.run(_all(followers))


async def _all(followers: Iterable[_Follower]) -> None:
    await together(*(follower.run() for follower in followers))


class _Follower:
    """One runtime's events on their way to one subscriber."""

    def __init__(self, call: ServerCall, method: Method, raw: bytes, runtime: Runtime) -> None:
        self._call = call
        self._method = method
        self._raw = raw
        self._runtime = runtime
        self._changes = Changes(runtime)
        self._rename = outside_of(runtime)

    async def run(self) -> None:
        """Tell events until the subscriber goes.

        Raises:
            RpcError: when the primary has no events, or a runtime refuses the subscriber.
        """
        runtime = self._runtime
        fresh = runtime.answering
        while True:
            if not runtime.answering:
                await runtime.changed()
                continue
            if await self._subscribe(fresh):
                await self._poll()
            fresh = False
            await asyncio.sleep(_AGAIN)

    async def _subscribe(self, fresh: bool) -> bool:
        """Tell the runtime's events; before them what was missed, unless the subscriber is new.

        Returns:
            Whether the runtime has no events.

        Raises:
            RpcError: as `run`.
        """
        runtime = self._runtime
        stream = runtime.stream(self._method, self._raw, metadata=self._call.metadata)
        async with aclosing(stream) as messages:
            # The subscription comes before the lists, so that nothing falls between them.
            first = asyncio.ensure_future(anext(messages, None))
            try:
                await asyncio.sleep(0)
                with suppress(RpcError):
                    missed = await self._changes.missed()
                    if not fresh:
                        await self._tell(missed)
                    await self._own(await first, messages)
            finally:
                first.cancel()
                await asyncio.wait((first,))
        return self._has_none(first)

    def _has_none(self, first: asyncio.Future[bytes | None]) -> bool:
        """Whether the subscription ended because the runtime has no events."""
        error = None if first.cancelled() else first.exception()
        if not isinstance(error, RpcError) or error.code not in _FINAL:
            return False
        if error.code == Code.UNIMPLEMENTED and not self._runtime.primary:
            return True
        raise named(self._runtime, error) from error

    async def _own(self, message: bytes | None, others: AsyncGenerator[bytes, None]) -> None:
        """Tell the runtime's own events, the first and the others."""
        if message is not None:
            self._changes.all_told()
        while message is not None:
            event = parse_response(self._method, message, self._runtime.where)
            self._runtime.touched()
            changed = self._rename(event)
            await self._send(event.SerializeToString() if changed else message)
            self._changes.told(event)
            message = await anext(others, None)

    async def _tell(self, missed: Iterable[Any]) -> None:
        for event in missed:
            self._rename(event)
            await self._send(event.SerializeToString())
            self._changes.told(event)
        self._changes.all_told()

    async def _poll(self) -> None:
        """Until the runtime goes: another version of it, with events, may come back."""
        connects = self._runtime.connects
        while self._runtime.answering and self._runtime.connects == connects:
            # Lists that fail now are asked for again.
            with suppress(RpcError):
                await self._tell(await self._changes.missed())
            await asyncio.sleep(_POLL)

    async def _send(self, payload: bytes) -> None:
        self._call.send_message(payload)
        await self._call.drained()
