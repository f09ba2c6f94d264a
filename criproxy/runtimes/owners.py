"""Which runtime owns an id.

Ids pass unchanged: runtimes make them up at random, and tell them in their lists, so the lists
say who owns which. `NAME__ID`, the form in which the original gave ids out, is understood too.
docs/decisions has why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from attrs import frozen

from criproxy.methods import BY_NAME
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.runtime import Runtime

SEPARATOR = "__"
#: Errors that say that the runtime has nothing of that name, or nothing of that kind at all.
KNOWS_NONE = (Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)


@frozen
class Owner:
    """Who owns an id.

    Args:
        runtime: the owner.
        id: the id as the runtime calls it.
    """

    runtime: Runtime
    id: str


class Owners:
    """Finds the owner of sandbox and container ids.

    Args:
        runtimes: the primary first.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self.runtimes = tuple(runtimes)
        self.primary = self.runtimes[0]
        self.by_name = {runtime.name: runtime for runtime in self.runtimes}

    def known(self, some_id: str) -> Owner | None:
        """The owner, as far as it is known without asking.

        Raises:
            RpcError: FAILED_PRECONDITION when two runtimes have the id.
        """
        holders = [r for r in self.runtimes if r.last.has(some_id)]
        holders = holders or [r for r in self.runtimes if r.last.had(some_id)]
        if len(holders) == 1:
            return Owner(holders[0], some_id)
        if holders:
            names = " and ".join(r.name for r in holders)
            forms = " or ".join(f"{r.name}{SEPARATOR}{some_id}" for r in holders)
            raise RpcError(
                Code.FAILED_PRECONDITION, f"id {some_id} is one of {names} alike; call it {forms}"
            )
        name, separator, rest = some_id.partition(SEPARATOR)
        if separator and rest and name in self.by_name:
            return Owner(self.by_name[name], rest)
        return None

    async def find(self, some_id: str, kind: str) -> Owner:
        """The owner, asking the runtimes if need be.

        Args:
            some_id: as the client gave it; runtimes may know longer ids by their beginning.
            kind: 'pod_sandbox_id' or 'container_id'.

        Returns:
            The primary for an id that is nobody's: it answers as it does for unknown ids.

        Raises:
            RpcError: UNAVAILABLE when a runtime that may own it cannot be asked, NOT_FOUND when
                the id names a runtime that is not configured.
        """
        owner = self.known(some_id)
        if owner is not None:
            return owner
        if len(self.runtimes) == 1 or not some_id:
            return Owner(self.primary, some_id)
        answers = await asyncio.gather(*(_has(r, some_id, kind) for r in self.runtimes))
        holders = [r for r, has in zip(self.runtimes, answers, strict=True) if has is True]
        if len(holders) == 1:
            return Owner(holders[0], some_id)
        if holders:
            names = " and ".join(r.name for r in holders)
            raise RpcError(
                Code.FAILED_PRECONDITION, f"{some_id} is the beginning of ids of {names}; give more"
            )
        for runtime, has in zip(self.runtimes, answers, strict=True):
            if isinstance(has, RpcError):
                raise RpcError(
                    Code.UNAVAILABLE, f"{some_id} may be an id of {runtime.name}: {has.message}"
                )
        name, separator, _ = some_id.partition(SEPARATOR)
        if separator and name:
            raise RpcError(
                Code.NOT_FOUND,
                f"{some_id} is nobody's id, and no runtime {name!r} is configured; "
                f"there are {', '.join(self.by_name)}",
            )
        return Owner(self.primary, some_id)


async def _has(runtime: Runtime, some_id: str, kind: str) -> bool | RpcError:
    """Whether the runtime has it, or why it cannot say."""
    if not runtime.answering:
        # What it had when it was last heard is known; ids that it made since went to nobody.
        # Without that, or when only an earlier proxy heard it, there is no telling.
        known = runtime.last.confirmed or not runtime.last.seen
        return False if known else runtime.away_error()
    if kind == "container_id":
        method = BY_NAME["ListContainers"]
    else:
        method = BY_NAME["ListPodSandbox"]
    request = method.request()
    request.filter.id = some_id
    try:
        reply = await runtime.ask(method, request.SerializeToString())
    except RpcError as error:
        return False if error.code in KNOWS_NONE else error
    answer = method.response.FromString(reply.payload)
    return bool(answer.containers if kind == "container_id" else answer.items)
