"""Pass a call on to one runtime; change names and ids only where that runtime needs it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from criproxy import image_names
from criproxy.methods import Method, parse_response
from criproxy.routes.runtime_part import renames
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.relay import Relay, Rewrite
from criproxy.rpc.status import Code
from criproxy.runtimes.runtime import Runtime

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
    Relay(
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
