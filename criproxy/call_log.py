"""The log line of a client's call: method, result, and the pod, container or image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from criproxy.image_names import is_image_id, shown_name
from criproxy.methods import BY_NAME, BY_PATH, parse_request
from criproxy.routes.runtime_part import outside_of
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.owners import CONTAINER, SANDBOX
from criproxy.runtimes.runtime import Runtime

log = logging.getLogger(__name__)


#: Calls that change something: they are logged at level info.
CHANGES = frozenset(
    (
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "RestorePod",
        "UpdatePodSandboxResources",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "UpdateContainerResources",
        "ReopenContainerLog",
        "PullImage",
        "RemoveImage",
        "UpdateRuntimeConfig",
    )
)
#: Characters of a client's text that are logged.
_LONGEST = 256
_LONGEST_PROBLEM = 2500
_Names = Mapping[str, Mapping[str, str]]


class CallLog:
    """Writes a log line for each call.

    Args:
        runtimes: whose lists have the names of pods and containers.
    """

    def __init__(self, runtimes: Sequence[Runtime]) -> None:
        self._runtimes = runtimes
        self._names: dict[str, _Names] = {}

    def ended(self, call: ServerCall, code: Code, seconds: float) -> None:
        """Log a call that has ended.

        Changes are logged as info, failed ones as warnings, and other calls as debug: a kubelet
        logs errors itself and calls again.
        """
        level = logging.DEBUG
        if call.method in CHANGES:
            level = logging.INFO if code in (Code.OK, Code.CANCELLED) else logging.WARNING
        if not log.isEnabledFor(level):
            return
        facts: dict[str, object] = {
            "call": call.method if call.path in BY_PATH else call.path[:_LONGEST],
            "runtime": call.runtime or "all",
            "code": code.name,
            "ms": round(seconds * 1000, 2),
        }
        if call.problem:
            facts["problem"] = harmless_problem(call)
        failed = code not in (Code.OK, Code.CANCELLED)
        log.log(level, "call failed" if failed else "call", extra=facts | self.about(call))

    def about(self, call: ServerCall) -> dict[str, str]:
        """The pod, container and image that a call is about, by id and name."""
        facts = _asked(call) | call.subjects
        if "container_name" not in facts:
            facts = {**self._known(facts.get("container", "")), **facts}
        if "pod_name" not in facts:
            facts = {**self._known(facts.get("pod", "")), **facts}
        return facts

    def _known(self, some_id: str) -> Mapping[str, str]:
        """Return what is known of a sandbox or container by its whole id."""
        for runtime in self._runtimes if some_id else ():
            names = self._names.get(runtime.name, {})
            if some_id not in names and runtime.last.has(some_id):
                # Decode the stored lists only for a new id: lists pass through undecoded.
                names = self._names[runtime.name] = _names(runtime)
            if some_id in names:
                return names[some_id]
        return {}


def _request(call: ServerCall) -> Any:
    """Return the request's message, or None if there is none or it is malformed."""
    method = BY_PATH.get(call.path)
    if method is None or call.message is None:
        return None
    try:
        return parse_request(method, call.payload())
    except RpcError:
        return None


def harmless_problem(call: ServerCall) -> str:
    """Return an error's message with the image names that a runtime quotes made safe to log."""
    request, text = _request(call), call.problem
    config = getattr(request, "config", None)
    for owner in (request, config):
        spec = getattr(owner, "image", None)
        for name in (spec.image, spec.user_specified_image) if spec is not None else ():
            text = text.replace(name, shown_name(name)) if name else text
    return text[:_LONGEST_PROBLEM]


def _asked(call: ServerCall) -> dict[str, str]:
    """Return the ids and names in the request."""
    request = _request(call)
    if request is None:
        return {}
    method = BY_PATH[call.path]
    given = {"pod": getattr(request, SANDBOX, ""), "container": getattr(request, CONTAINER, "")}
    config: Any = getattr(request, "config", None)
    image: Any = getattr(request, "image", None)
    if method.name == "CreateContainer":
        given["container_name"] = config.metadata.name
        image = config.image
    pod = config if method.name == "RunPodSandbox" else getattr(request, "sandbox_config", None)
    if pod is not None and pod.metadata.name:
        given["pod_name"] = f"{pod.metadata.namespace}/{pod.metadata.name}"
    if image is not None:
        given["image"] = shown_name(image.user_specified_image or image.image)
        if is_image_id(image.image):
            given["image_id"] = image.image
    return {key: value[:_LONGEST] for key, value in given.items() if value}


def _names(runtime: Runtime) -> _Names:
    """Return the names of a runtime's pods and containers by id."""
    found: dict[str, dict[str, str]] = {}
    pods: Any = runtime.last_answer(BY_NAME["ListPodSandbox"])
    for pod in pods.items if pods is not None else ():
        found[pod.id] = {"pod_name": f"{pod.metadata.namespace}/{pod.metadata.name}"}
    containers: Any = runtime.last_answer(BY_NAME["ListContainers"])
    if containers is not None:
        outside_of(runtime)(containers)
    for container in containers.containers if containers is not None else ():
        found[container.id] = {
            "pod": container.pod_sandbox_id,
            "container_name": container.metadata.name,
            "image": shown_name(container.image.user_specified_image or container.image.image),
            "image_id": container.image_ref,
        }
    return found
