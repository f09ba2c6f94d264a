"""Container events told by comparing lists: for times when nobody could hear a runtime's own."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from criproxy.methods import BY_NAME
from criproxy.rpc.status import Code, RpcError
from criproxy.runtimes.runtime import Runtime
from virtlet.cri import api_pb2

#: How far a container or sandbox has come; the events in between are those that led there.
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


class Changes:
    """What a subscriber was told of one runtime, and what it has missed.

    Args:
        runtime: whose lists are compared.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._told: dict[str, _Item] = _items(runtime)
        self._listed = self._told

    def told(self, event: Any) -> None:
        """The subscriber got an event, the runtime's own or one of `missed`."""
        some_id, stage = event.container_id, event.container_event_type
        if stage == _DELETED:
            self._told.pop(some_id, None)
        else:
            before = self._told.get(some_id)
            sandbox_id = event.pod_sandbox_status.id or (before.sandbox_id if before else "")
            self._told[some_id] = _Item(stage, sandbox_id)

    def all_told(self) -> None:
        """The subscriber knows, or need not know, what the lists of `missed` had."""
        self._told = dict(self._listed)

    async def missed(self) -> list[Any]:
        """Events for what has changed since, made from the runtime's present lists.

        They count as missed until they are told: the runtime may go away before they are.

        Raises:
            RpcError: when the runtime does not list.
        """
        await self._runtime.take_stock(("ListPodSandbox", "ListContainers"))
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
        """The sandbox's status and its containers', as an event carries them."""
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
    """Id, sandbox and stage of every step from one state to the other, pod by pod."""
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
    """A pod's sandbox comes before its containers and goes after them."""
    some_id, sandbox_id, stage = step
    ending = stage >= _EXITED
    return ending, (some_id == sandbox_id) is ending
