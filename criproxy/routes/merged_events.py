"""GetContainerEvents: the events of all runtimes in one stream that outlives each of them.

When a runtime comes back, its lists are compared with what the subscriber knows, and the missed
events are sent before its own events go on. The lists of a runtime without events are compared
every second, as a kubelet itself would do.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Any

from attrs import frozen

from criproxy.methods import BY_NAME, Method, parse_request, parse_response
from criproxy.routes.one_runtime import forward
from criproxy.routes.runtime_part import named, outside_of, together
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime
from virtlet.cri import api_pb2

_POLL = 1.0
#: Seconds between two subscriptions to a runtime that ends its event streams.
_AGAIN = 0.2
#: Errors that another subscription would not mend.
_FINAL = (Code.UNIMPLEMENTED, Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED)


@frozen
class MergedEvents:
    """Routes the calls.

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
    """Sends one runtime's events to one subscriber."""

    def __init__(self, call: ServerCall, method: Method, raw: bytes, runtime: Runtime) -> None:
        self._call = call
        self._method = method
        self._raw = raw
        self._runtime = runtime
        self._changes = MissedEvents(runtime)
        self._rename = outside_of(runtime)

    async def run(self) -> None:
        """Send events until the subscriber goes.

        Raises:
            RpcError: if the primary has no events, or a runtime refuses the subscriber.
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
        """Send the runtime's events, after the missed ones unless the subscriber is new.

        Returns:
            Whether the runtime has no events.

        Raises:
            RpcError: as `run`.
        """
        runtime = self._runtime
        stream = runtime.stream(self._method, self._raw, metadata=self._call.metadata)
        async with aclosing(stream) as messages:
            # Subscribe before asking for the lists, so that no event is lost in between.
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
        """Send the runtime's own events, the first and the others."""
        if message is not None:
            self._changes.all_told()
        while message is not None:
            event = parse_response(self._method, message, self._runtime.where)
            self._runtime.note_change()
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
        """Compare lists until the runtime goes: it may come back in a version with events."""
        connects = self._runtime.connects
        while self._runtime.answering and self._runtime.connects == connects:
            # Ask again for lists that fail.
            with suppress(RpcError):
                await self._tell(await self._changes.missed())
            await asyncio.sleep(_POLL)

    async def _send(self, payload: bytes) -> None:
        self._call.send_message(payload)
        await self._call.drained()


#: Stages of a container or sandbox, in order; each stage has its event.
_CREATED, _RUNNING, _EXITED, _DELETED = 0, 1, 2, 3
_EVENTS = (
    api_pb2.CONTAINER_CREATED_EVENT,
    api_pb2.CONTAINER_STARTED_EVENT,
    api_pb2.CONTAINER_STOPPED_EVENT,
    api_pb2.CONTAINER_DELETED_EVENT,
)


@frozen
class _Item:
    stage: int
    sandbox_id: str


class MissedEvents:
    """What one subscriber knows of one runtime, and the events that it missed.

    Args:
        runtime: the runtime whose lists are compared.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._told: dict[str, _Item] = _items(runtime)
        self._listed = self._told

    def told(self, event: Any) -> None:
        """Note that the subscriber got an event, the runtime's own or one of `missed`."""
        some_id, stage = event.container_id, event.container_event_type
        if stage == _DELETED:
            self._told.pop(some_id, None)
        else:
            before = self._told.get(some_id)
            sandbox_id = event.pod_sandbox_status.id or (before.sandbox_id if before else "")
            self._told[some_id] = _Item(stage, sandbox_id)

    def all_told(self) -> None:
        """Note that the subscriber knows, or need not know, the lists of `missed`."""
        self._told = dict(self._listed)

    async def missed(self) -> list[Any]:
        """Return events for what has changed since, made from the runtime's present lists.

        They count as missed until they are sent: the runtime may go away before.

        Raises:
            RpcError: if the runtime does not list.
        """
        await self._runtime.update_inventory(("ListPodSandbox", "ListContainers"))
        self._listed = _items(self._runtime)
        steps = list(_steps(self._told, self._listed))
        events = []
        statuses = {sandbox: await self._statuses(sandbox) for sandbox in {s for _, s, _ in steps}}
        for some_id, sandbox, stage in steps:
            event = api_pb2.ContainerEventResponse(
                container_id=some_id,
                container_event_type=_EVENTS[stage],
                created_at=time.time_ns(),
            )
            event.MergeFrom(statuses[sandbox])
            events.append(event)
        return events

    async def _statuses(self, sandbox_id: str) -> Any:
        """Return the statuses of the sandbox and its containers, as an event carries them."""
        event = api_pb2.ContainerEventResponse()
        if not sandbox_id:
            return event
        method = BY_NAME["PodSandboxStatus"]
        answer = await self._ask("PodSandboxStatus", method.request(pod_sandbox_id=sandbox_id))
        if answer is None:
            return event
        event.pod_sandbox_status.CopyFrom(answer.status)
        event.containers_statuses.extend(answer.containers_statuses)
        if not event.containers_statuses:
            ask = BY_NAME["ContainerStatus"].request
            for some_id, item in self._listed.items():
                if item.sandbox_id == sandbox_id and some_id != sandbox_id:
                    status = await self._ask("ContainerStatus", ask(container_id=some_id))
                    if status is not None:
                        event.containers_statuses.append(status.status)
        return event

    async def _ask(self, name: str, request: Any) -> Any | None:
        method = BY_NAME[name]
        try:
            reply = await self._runtime.ask(method, request.SerializeToString())
        except RpcError as error:
            if error.code == Code.UNAVAILABLE:
                raise
            return None
        return method.response.FromString(reply.payload)


def _items(runtime: Runtime) -> dict[str, _Item]:
    found = {}
    pods = runtime.last_answer(BY_NAME["ListPodSandbox"])
    for pod in pods.items if pods is not None else ():
        stage = _RUNNING if pod.state == api_pb2.SANDBOX_READY else _EXITED
        found[pod.id] = _Item(stage, pod.id)
    containers = runtime.last_answer(BY_NAME["ListContainers"])
    for container in containers.containers if containers is not None else ():
        stage = min(container.state, _EXITED)
        found[container.id] = _Item(stage, container.pod_sandbox_id)
    return found


def _steps(old: Mapping[str, _Item], new: Mapping[str, _Item]) -> Iterable[tuple[str, str, int]]:
    """Yield id, sandbox and stage of every step between the two states, pod by pod."""
    by_sandbox: dict[str, list[tuple[str, str, int]]] = defaultdict(list)
    for some_id in {**old, **new}:
        before, after = old.get(some_id), new.get(some_id)
        item = after or before
        assert item is not None
        start = _CREATED if before is None else before.stage + 1
        end = _DELETED if after is None else after.stage
        for stage in range(start, end + 1):
            by_sandbox[item.sandbox_id].append((some_id, item.sandbox_id, stage))
    for steps in by_sandbox.values():
        yield from sorted(steps, key=_order)


def _order(step: tuple[str, str, int]) -> tuple[bool, bool]:
    """Sort key: a sandbox starts before its containers and ends after them."""
    some_id, sandbox_id, stage = step
    ending = stage >= _EXITED
    return ending, (some_id == sandbox_id) is ending
