"""Calls that one runtime answers: the owner of an id, also for methods unknown to the proxy.

Names and ids are changed only where the runtime needs it. Calls of unknown methods pass in any
kind of stream. Protobuf's encoding shows where fields are but not their names: enough to find the
id of a known sandbox or container in a text field at the top level of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import frozen

from criproxy import image_names
from criproxy.methods import Method, parse_request, parse_response
from criproxy.routes.runtime_part import renames
from criproxy.rpc.call_relay import CallRelay, Rewrite
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code
from criproxy.runtimes.owners import CONTAINER, SANDBOX, Owner, Owners
from criproxy.runtimes.runtime import Runtime
from criproxy.streaming_urls import StreamUrls

#: Called with an answer's message; returns whether it changed it.
Look = Callable[[Any], bool]

#: Methods that change what the runtime has.
_CHANGING = frozenset(
    (
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "RestorePod",
        "PullImage",
        "RemoveImage",
    )
)


def forward(
    call: ServerCall,
    runtime: Runtime,
    method: Method,
    request: Any = None,
    look: Look | None = None,
    some_id: str = "",
) -> None:
    """Pass a call on.

    Args:
        call: routed, but not answered yet.
        runtime: where it goes.
        method: what is called.
        request: the request's message if it was changed and must be encoded again.
        look: sees every message of the answer, and may change it.
        some_id: the sandbox or container that the call is about, as the runtime calls it.

    Raises:
        RpcError: when the runtime is away.
    """
    call.runtime = runtime.name
    record = runtime.recorder(method.name)

    def ended(code: Code) -> None:
        record(code)
        if method.name in _CHANGING:
            if code == Code.OK:
                runtime.last.did(method.name, some_id)
            runtime.note_change()

    seconds = runtime.config.limits.call_seconds
    CallRelay(
        call,
        runtime.open,
        where=runtime.where,
        request=None if request is None else request.SerializeToString(),
        rewrite=_rewrite(runtime, method, look),
        seconds=None if method.streaming or seconds == float("inf") else seconds,
        limit=runtime.config.limits.message_bytes,
        ended=ended,
    )


def _rewrite(runtime: Runtime, method: Method, look: Look | None) -> Rewrite | None:
    named = renames(runtime, method)
    if look is None and not named:
        return None
    change = image_names.outside(runtime.config.image_prefix)

    def rewrite(payload: bytes) -> bytes:
        message = parse_response(method, payload, runtime.where)
        changed = look is not None and look(message)
        if named:
            changed = image_names.in_response(message, change) or changed
        return message.SerializeToString() if changed else payload

    return rewrite


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
            changed = self._to_own_image(request.config.image, owner.runtime) or changed
        if not owner.runtime.primary:
            change = image_names.inside(owner.runtime.config.image_prefix)
            changed = image_names.in_request(request, change) or changed
        return changed

    def _to_own_image(self, spec: Any, runtime: Runtime) -> bool:
        """Put the image's name in place of an id that only another runtime has.

        A kubelet that started again may have got the id for the name from there.
        """
        theirs = any(spec.image in r.last.images for r in self.owners.runtimes)
        if not spec.user_specified_image or not theirs or spec.image in runtime.last.images:
            return False
        spec.image = spec.user_specified_image
        return True

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


@frozen
class Unknown:
    """Routes the calls.

    Args:
        owners: finds the owner of an id.
    """

    owners: Owners

    def __call__(self, call: ServerCall) -> None:
        """Route a call."""
        runtime, request = self._target(call)
        call.runtime = runtime.name
        # The path is the client's: unbounded names must not become labels of metrics.
        record = runtime.recorder("unknown")

        def ended(code: Code) -> None:
            record(code)
            runtime.note_change()

        CallRelay(call, runtime.open, where=runtime.where, request=request, ended=ended)

    def _target(self, call: ServerCall) -> tuple[Runtime, bytes | None]:
        if call.message is None or len(self.owners.runtimes) == 1:
            return self.owners.primary, None
        payload = call.payload()
        for field in texts(payload):
            owner = self.owners.known(field.text)
            if owner is not None:
                if owner.id != field.text:
                    return owner.runtime, replaced(payload, field, owner.id)
                return owner.runtime, None
        return self.owners.primary, None


#: More fields than any CRI request has; bounds the time for a hostile message.
_MOST_FIELDS = 256
_LONGEST_ID = 256


@frozen
class Text:
    """A text field's place in a message.

    Args:
        size_at: where the encoding of its size starts.
        end: where the field ends.
        text: what it says.
    """

    size_at: int
    end: int
    text: str


def texts(message: bytes) -> Iterator[Text]:
    """Yield the short texts among a message's own fields, up to the first malformed field."""
    position = 0
    for _ in range(_MOST_FIELDS):
        try:
            tag, position = _varint(message, position)
            kind = tag & 7
            if kind == 0:
                _, position = _varint(message, position)
            elif kind == 1:
                position += 8
            elif kind == 5:
                position += 4
            elif kind == 2:
                size_at = position
                size, start = _varint(message, position)
                position = start + size
                if 0 < size <= _LONGEST_ID and position <= len(message):
                    text = message[start:position].decode("utf-8", errors="ignore")
                    yield Text(size_at, position, text)
            else:
                return
        except ValueError:
            return


def replaced(message: bytes, field: Text, text: str) -> bytes:
    """Return the message with another text in the field."""
    new = text.encode()
    return message[: field.size_at] + _encoded(len(new)) + new + message[field.end :]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position after it; raise ValueError without one."""
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise ValueError("message ends")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("number too long")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
