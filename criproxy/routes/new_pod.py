"""Which runtime runs a new pod: RuntimeClass handler, annotation, else the primary."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from criproxy import image_names
from criproxy.methods import Method, parse_request
from criproxy.routes.one_runtime import forward
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime

#: The pod annotation that names a runtime, as in the original proxy.
TARGET_RUNTIME = "kubernetes.io/target-runtime"


@frozen
class Choice:
    """Where a pod goes.

    Args:
        runtime: the chosen runtime.
        handler: the handler to ask it for.
    """

    runtime: Runtime
    handler: str


@frozen
class Chooser:
    """Chooses a runtime by what a pod says.

    Args:
        owners: knows the runtimes.
    """

    owners: Owners

    def by_annotation(self, annotations: Mapping[str, str]) -> Runtime | None:
        """Return the runtime that the annotation names, or None without one.

        Raises:
            RpcError: INVALID_ARGUMENT for a name that is not configured.
        """
        name = annotations.get(TARGET_RUNTIME, "")
        if not name:
            return None
        try:
            return self.owners.by_name[name]
        except KeyError:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"annotation {TARGET_RUNTIME} names the runtime {name!r}; "
                f"there are {', '.join(self.owners.by_name)}",
            ) from None

    def by_handler(self, handler: str) -> tuple[Runtime, ...]:
        """Return the runtimes that serve a handler, by configuration, name or Status.

        If the primary serves it, return the primary alone: another runtime with the same handler
        must not take pods away from it.
        """
        runtimes = self.owners.runtimes
        for claimed in (
            [r for r in runtimes if handler in r.config.handlers],
            [r for r in runtimes if handler == r.name],
            [r for r in runtimes if r.primary and handler in r.handlers()],
        ):
            if claimed:
                return tuple(claimed)
        return tuple(r for r in runtimes if handler in r.handlers())

    def choose(self, handler: str, annotations: Mapping[str, str]) -> Choice:
        """Choose the runtime for a pod with this handler and these annotations.

        Raises:
            RpcError: INVALID_ARGUMENT if they contradict each other or name an unknown runtime or
                handler; UNAVAILABLE if a runtime that may serve the handler never answered yet.
        """
        named = self.by_annotation(annotations)
        if not handler:
            return Choice(named or self.owners.primary, "")
        serving = self.by_handler(handler)
        if named is not None:
            if serving and named not in serving and handler not in named.handlers():
                others = " and ".join(r.name for r in serving)
                raise RpcError(
                    Code.INVALID_ARGUMENT,
                    f"annotation {TARGET_RUNTIME} names the runtime {named.name!r}, but the "
                    f"RuntimeClass handler {handler!r} is served by {others}; keep one of the two",
                )
            if not serving:
                self._must_be_open(named, handler, ())
            return Choice(named, _inner(named, handler))
        if len(serving) == 1:
            return Choice(serving[0], _inner(serving[0], handler))
        if serving:
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"RuntimeClass handler {handler!r} is served by "
                f"{' and '.join(r.name for r in serving)}; say which with the annotation "
                f"{TARGET_RUNTIME} or with 'handlers' in criproxy's configuration",
            )
        self._must_be_open(self.owners.primary, handler, self.owners.runtimes)
        return Choice(self.owners.primary, handler)

    def _must_be_open(self, runtime: Runtime, handler: str, others: Iterable[Runtime]) -> None:
        """Let an unclaimed handler reach a runtime that does not list its handlers.

        Such a runtime (containerd before 2.0) refuses unknown handlers itself.

        Raises:
            RpcError: if the runtime lists its handlers and this one is not among them.
        """
        if not runtime.handlers():
            return
        for other in others:
            if not other.last.seen:
                raise RpcError(
                    Code.UNAVAILABLE,
                    f"RuntimeClass handler {handler!r} may be one of {other.name}: "
                    f"{other.away_error().message}",
                )
        raise RpcError(
            Code.INVALID_ARGUMENT,
            f"no runtime serves the RuntimeClass handler {handler!r}; {self._choices()}",
        )

    def _choices(self) -> str:
        return "; ".join(
            f"{r.name} serves {', '.join(sorted({*r.handlers(), r.name}))}"
            for r in self.owners.runtimes
        )


def _inner(runtime: Runtime, handler: str) -> str:
    """Return the handler as the runtime knows it; its own name is known only outside."""
    if handler == runtime.name and handler not in runtime.handlers():
        return ""
    return handler


@frozen
class NewPod:
    """Routes RunPodSandbox and RestorePod.

    Args:
        chooser: chooses the runtime.
    """

    chooser: Chooser

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        request = parse_request(method, call.payload())
        choice = self.chooser.choose(request.runtime_handler, request.config.annotations)
        runtime = choice.runtime
        changed = choice.handler != request.runtime_handler
        if changed:
            request.runtime_handler = choice.handler
        if not runtime.primary:
            change = image_names.inside(runtime.config.image_prefix)
            changed = image_names.in_request(request, change) or changed

        def learn(answer: Any) -> bool:
            runtime.last.learn_sandbox(answer.pod_sandbox_id, request)
            call.subjects["pod"] = answer.pod_sandbox_id
            for restored in getattr(answer, "restored_containers", ()):
                runtime.last.learn_container(restored.container_id)
            return False

        forward(call, runtime, method, request if changed else None, learn)
