"""Calls about one sandbox or container go to its owner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from criproxy import image_names
from criproxy.methods import Method, parse_request
from criproxy.routes.forward import Look, forward
from criproxy.rpc.incoming import ServerCall
from criproxy.runtimes.owners import CONTAINER, SANDBOX, Owner, Owners
from criproxy.streaming_urls import StreamUrls

#: The field with the id of the sandbox or container, by method.
ID_FIELDS: Mapping[str, str] = {
    "StopPodSandbox": SANDBOX,
    "RemovePodSandbox": SANDBOX,
    "PodSandboxStatus": SANDBOX,
    "PodSandboxStats": SANDBOX,
    "UpdatePodSandboxResources": SANDBOX,
    "PortForward": SANDBOX,
    "CheckpointPod": SANDBOX,
    "CreateContainer": SANDBOX,
    "StartContainer": CONTAINER,
    "StopContainer": CONTAINER,
    "RemoveContainer": CONTAINER,
    "ContainerStatus": CONTAINER,
    "ContainerStats": CONTAINER,
    "UpdateContainerResources": CONTAINER,
    "ReopenContainerLog": CONTAINER,
    "ExecSync": CONTAINER,
    "Exec": CONTAINER,
    "Attach": CONTAINER,
    "CheckpointContainer": CONTAINER,
}
#: Methods that change nothing, whichever runtime they reach.
_READS = ("PodSandboxStatus", "PodSandboxStats", "ContainerStatus", "ContainerStats")
_URL_METHODS = ("Exec", "Attach", "PortForward")


@frozen
class ById:
    """Routes the calls.

    Args:
        owners: finds the owner of an id.
        urls: makes relative streaming URLs reachable.
    """

    owners: Owners
    urls: StreamUrls

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        request = parse_request(method, call.payload())
        field = ID_FIELDS[method.name]
        some_id = getattr(request, field)
        owner = self.owners.known(some_id)
        if owner is None:
            call.run(self._find(call, method, request, field))
        else:
            self._forward(call, method, request, field, owner)

    async def _find(self, call: ServerCall, method: Method, request: Any, field: str) -> None:
        sure = method.name not in _READS
        owner = await self.owners.find(getattr(request, field), field, sure=sure)
        self._forward(call, method, request, field, owner)

    def _forward(
        self, call: ServerCall, method: Method, request: Any, field: str, owner: Owner
    ) -> None:
        changed = self._to_owner(request, field, owner)
        call.subjects["pod" if field == SANDBOX else "container"] = owner.id
        forward(
            call,
            owner.runtime,
            method,
            request if changed else None,
            self._look(call, method, owner, request),
            getattr(request, field),
        )

    def _to_owner(self, request: Any, field: str, owner: Owner) -> bool:
        """Put ids and image names into the owner's form; return whether any differed."""
        changed = False
        if getattr(request, field) != owner.id:
            setattr(request, field, owner.id)
            changed = True
        prefix = owner.runtime.name + "__"
        if field == SANDBOX and hasattr(request, "container_ids"):
            ids = [i.removeprefix(prefix) for i in request.container_ids]
            if ids != list(request.container_ids):
                request.container_ids[:] = ids
                changed = True
        if hasattr(request, "config"):
            options = request.config.linux.security_context.namespace_options
            if options.target_id.startswith(prefix):
                options.target_id = options.target_id.removeprefix(prefix)
                changed = True
        if not owner.runtime.primary:
            change = image_names.inside(owner.runtime.config.image_prefix)
            changed = image_names.in_request(request, change) or changed
        return changed

    def _look(self, call: ServerCall, method: Method, owner: Owner, request: Any) -> Look | None:
        runtime = owner.runtime
        if method.name == "CreateContainer":

            def learn(answer: Any) -> bool:
                runtime.last.learn_container(answer.container_id, request)
                call.subjects["container"] = answer.container_id
                return False

            return learn
        if method.name in _URL_METHODS:
            return lambda answer: self.urls.through(runtime, answer)
        return None
