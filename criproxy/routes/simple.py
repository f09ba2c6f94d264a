"""The short rules: to the primary, and to everyone."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from attrs import frozen

from criproxy.methods import Method, parse_request
from criproxy.routes.forward import forward
from criproxy.routes.runtime_part import NOTHING, Part, named
from criproxy.routes.together import together
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime

#: How another runtime than the primary may end UpdateRuntimeConfig: it is told when it comes.
_NO_MATTER = (Code.UNIMPLEMENTED, Code.UNAVAILABLE, Code.CANCELLED)


@frozen
class ToPrimary:
    """The rule for what is asked of the node: Version, RuntimeConfig."""

    owners: Owners

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        forward(call, self.owners.primary, method)


@frozen
class ToEveryone:
    """The rule for UpdateRuntimeConfig.

    The primary has to be there. Another runtime that is away or silent is told when it comes: a
    kubelet must not wait with the node's pod network for it.
    """

    owners: Owners

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        raw = call.payload()
        parse_request(method, raw)
        call.run(self._tell(call, method, raw))

    async def _tell(self, call: ServerCall, method: Method, raw: bytes) -> None:
        if not self.owners.primary.answering:
            raise self.owners.primary.away_error()
        tellings: list[Coroutine[Any, Any, Part]] = []
        for runtime in self.owners.runtimes:
            runtime.owe_update(raw)
            if runtime.answering:
                tellings.append(_tell(call, runtime, method, raw))
        parts = await together(*tellings)
        call.send_metadata(parts[0].metadata)
        call.send_message(parts[0].raw)
        call.finish(extra=parts[0].trailers)


async def _tell(call: ServerCall, runtime: Runtime, method: Method, raw: bytes) -> Part:
    remaining = call.remaining()
    try:
        if runtime.primary:
            reply = await runtime.call(method, raw, metadata=call.metadata, timeout=remaining)
        else:
            reply = await runtime.ask(method, raw, metadata=call.metadata, remaining=remaining)
    except RpcError as error:
        runtime.told_update(raw, error)
        runtime.look.set()
        if not runtime.primary and error.code in _NO_MATTER:
            return NOTHING
        raise named(runtime, error) from error
    runtime.told_update(raw)
    return Part(reply.payload, reply.metadata, reply.trailers)
