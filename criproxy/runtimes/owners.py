"""Which runtime owns an id.

Ids pass unchanged. Runtimes choose them at random and list them, so the lists determine the owner.
Two more forms are understood: `NAME__ID`, as the original proxy gave ids out, and the beginning of
one id, as crictl prints it, for which every runtime is asked. docs/decisions has why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from attrs import frozen

from criproxy.methods import BY_NAME
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.runtime import Runtime

SEPARATOR = "__"
#: The fields with ids of sandboxes and containers.
SANDBOX = "pod_sandbox_id"
CONTAINER = "container_id"
#: Number of ids that are shown for an ambiguous beginning.
_SHOWN = 3
#: Errors of a runtime that has no item of that name, or no items of that kind.
KNOWS_NONE = (Code.NOT_FOUND, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED)


@frozen
class Owner:
    """The owner of an id.

    Args:
        runtime: the owner.
        id: the id as the runtime knows it.
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
        """Return the owner, as far as it is known without asking, or None.

        Raises:
            RpcError: FAILED_PRECONDITION if two runtimes have the id.
        """
        holders = [r for r in self.runtimes if r.last.has(some_id)]
        holders = holders or [r for r in self.runtimes if r.last.had(some_id)]
        if len(holders) == 1:
            return Owner(holders[0], some_id)
        if holders:
            names = " and ".join(r.name for r in holders)
            forms = " or ".join(f"{r.name}{SEPARATOR}{some_id}" for r in holders)
            raise RpcError(
                Code.FAILED_PRECONDITION,
                f"runtimes {names} both have the id {some_id}; write {forms}",
            )
        name, separator, rest = some_id.partition(SEPARATOR)
        if separator and rest and name in self.by_name:
            return Owner(self.by_name[name], rest)
        return None

    async def meant(self, some_id: str, kind: str) -> Owner | None:
        """Return the owner of the only id that begins so, as far as runtimes can be asked.

        Args:
            some_id, kind: as in `find`.

        Raises:
            RpcError: FAILED_PRECONDITION when several ids begin so.
        """
        owner = self.known(some_id)
        return owner or (await self._beginning(some_id, kind))[0]

    async def _beginning(
        self, some_id: str, kind: str
    ) -> tuple[Owner | None, tuple[Runtime, RpcError] | None]:
        """Return the owner of the only id that begins so, and a runtime that cannot be asked."""
        answers = await asyncio.gather(*(_having(r, some_id, kind) for r in self.runtimes))
        owners: list[Owner] = []
        silent: tuple[Runtime, RpcError] | None = None
        for runtime, ids in zip(self.runtimes, answers, strict=True):
            if isinstance(ids, RpcError):
                silent = silent or (runtime, ids)
            else:
                owners += (Owner(runtime, i) for i in ids)
        if len(owners) > 1:
            raise _several(some_id, kind, owners)
        return owners[0] if owners else None, silent

    async def find(self, some_id: str, kind: str, *, sure: bool = True) -> Owner:
        """Return the owner; ask the runtimes if it is unknown.

        Args:
            some_id: as the client gave it; maybe only the beginning of an id.
            kind: SANDBOX or CONTAINER.
            sure: whether to refuse the beginning of an id while a runtime cannot be asked: it may
                begin an id there too, and the call would change the wrong item.

        Returns:
            The primary if no runtime has the id: it answers as it does for unknown ids.

        Raises:
            RpcError: UNAVAILABLE if a runtime that may own it cannot be asked, NOT_FOUND if the id
                names a runtime that is not configured, FAILED_PRECONDITION if several ids begin so.
        """
        owner = self.known(some_id)
        if owner is not None:
            return owner
        if len(self.runtimes) == 1 or not some_id:
            return Owner(self.primary, some_id)
        found, silent = await self._beginning(some_id, kind)
        if found is not None and (silent is None or not sure or found.id == some_id):
            return found
        if found is not None and silent is not None:
            runtime, error = silent
            raise RpcError(
                Code.UNAVAILABLE,
                f"{some_id} begins {found.id} of {found.runtime.name} and may begin an id of "
                f"{runtime.name}: {error.message}; give the whole id",
            )
        if silent is not None:
            runtime, error = silent
            raise RpcError(
                Code.UNAVAILABLE, f"{some_id} may be an id of {runtime.name}: {error.message}"
            )
        name, separator, _ = some_id.partition(SEPARATOR)
        if separator and name:
            raise RpcError(
                Code.NOT_FOUND,
                f"no runtime has the id {some_id}, and no runtime {name!r} is configured; "
                f"there are {', '.join(self.by_name)}",
            )
        return Owner(self.primary, some_id)


async def _having(runtime: Runtime, some_id: str, kind: str) -> list[str] | RpcError:
    """Return the runtime's ids that begin so, or the error why they are unknown."""
    known = runtime.last.beginning(some_id, kind == SANDBOX)
    if not runtime.answering:
        # Its last known ids are complete: no client got an id since. They are unknown if it never
        # answered this proxy but did answer an earlier one.
        if known or runtime.last.confirmed or not runtime.last.seen:
            return known
        return runtime.away_error()
    method = BY_NAME["ListPodSandbox" if kind == SANDBOX else "ListContainers"]
    request = method.request()
    request.filter.id = some_id
    try:
        reply = await runtime.ask(method, request.SerializeToString())
    except RpcError as error:
        if error.code in KNOWS_NONE:
            return []
        # Virtlet's answer to an ambiguous beginning.
        several = error.code == Code.FAILED_PRECONDITION and len(known) > 1
        return known if several else error
    answer = method.response.FromString(reply.payload)
    having = [item.id for item in (answer.items if kind == SANDBOX else answer.containers)]
    # containerd lists nothing for an ambiguous beginning.
    return having or (known if len(known) > 1 else [])


def _several(some_id: str, kind: str, owners: Sequence[Owner]) -> RpcError:
    what = "pod sandbox" if kind == SANDBOX else "container"
    shown = ", ".join(f"{o.id} of {o.runtime.name}" for o in owners[:_SHOWN])
    more = ", …" if len(owners) > _SHOWN else ""
    return RpcError(
        Code.FAILED_PRECONDITION,
        f"{what} id {some_id} is the beginning of {len(owners)} ids: {shown}{more}; "
        "give more of it",
    )
