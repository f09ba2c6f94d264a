"""Calls about one image go to the runtime that its name, its pod or its id determines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from criproxy import image_names
from criproxy.methods import BY_NAME, Method, parse_request, parse_response
from criproxy.routes.new_pod import Chooser
from criproxy.routes.one_runtime import forward
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.messages import Code, RpcError
from criproxy.runtimes.last_known import pod_marks
from criproxy.runtimes.owners import KNOWS_NONE, Owners
from criproxy.runtimes.runtime import Runtime

_STATUS = BY_NAME["ImageStatus"]


@frozen
class ImageRouter:
    """Finds the runtime of an image.

    Args:
        owners: knows the runtimes.
        chooser: knows annotations and handlers.
    """

    owners: Owners
    chooser: Chooser

    def by_prefix(self, name: str) -> Runtime | None:
        """Return the runtime whose prefix the name has."""
        for runtime in self.owners.runtimes:
            if not runtime.primary and name.startswith(runtime.config.image_prefix):
                return runtime
        return None

    def by_digest(self, name: str) -> Runtime | None:
        """Return the only runtime that has the image whose digest the name ends with."""
        digest = image_names.digest_of(name)
        having = [r for r in self.owners.runtimes if digest and digest in r.last.digests]
        return having[0] if len(having) == 1 else None

    def by_pod(self, uid: str, annotations: Mapping[str, str]) -> Runtime | None:
        """Return the only runtime that has the pod with this UID, or else these annotations."""
        for runtimes in (
            [r for r in self.owners.runtimes if uid and uid in r.last.pod_uids],
            *(
                [r for r in self.owners.runtimes if mark in r.last.pod_marks]
                for mark in pod_marks(annotations)
            ),
        ):
            if len(runtimes) == 1:
                return runtimes[0]
        return None

    def told(self, request: Any) -> Runtime | None:
        """Return the runtime that the request names by prefix, annotation, handler, pod or digest.

        Raises:
            RpcError: INVALID_ARGUMENT if two of these name different runtimes.
        """
        spec = request.image
        hints: dict[str, Runtime] = {}
        prefixed = self.by_prefix(spec.image) or self.by_prefix(spec.user_specified_image)
        if prefixed is not None:
            hints[f"its name {image_names.shown_name(spec.image)!r}"] = prefixed
        pod = getattr(request, "sandbox_config", None)
        for what, said in (
            ("its annotations", spec.annotations),
            ("its pod's annotations", pod.annotations if pod is not None else {}),
        ):
            named = self.chooser.by_annotation(said)
            if named is not None:
                hints[what] = named
        if spec.runtime_handler:
            serving = self.chooser.by_handler(spec.runtime_handler)
            if len(serving) == 1:
                hints[f"the handler {spec.runtime_handler!r}"] = serving[0]
        chosen = list(dict.fromkeys(hints.values()))
        if len(chosen) > 1:
            claims = ", ".join(f"{what} says {r.name}" for what, r in hints.items())
            raise RpcError(
                Code.INVALID_ARGUMENT,
                f"image {image_names.shown_name(spec.image)!r} is claimed by two runtimes: "
                f"{claims}",
            )
        if chosen:
            return chosen[0]
        uid = pod.metadata.uid if pod is not None else ""
        return self.by_pod(uid, spec.annotations) or self.by_digest(spec.image)


@frozen
class OneImage:
    """Routes PullImage, ImageStatus and RemoveImage.

    Args:
        router: finds the runtime of an image.
    """

    router: ImageRouter

    def __call__(self, call: ServerCall, method: Method) -> None:
        """Route a call."""
        request = parse_request(method, call.payload())
        runtime = self.router.told(request)
        if runtime is None and self._may_be_an_id(request.image.image, method):
            call.run(self._by_id(call, method, request))
        elif runtime is None and self._is_for_no_pod(request.image, method):
            call.run(self._by_name(call, method, request))
        else:
            to_runtime(call, runtime or self.router.owners.primary, method, request)

    def _is_for_no_pod(self, spec: Any, method: Method) -> bool:
        """Whether any runtime's image of that name will do.

        An image of another runtime is of no use to a pod: the kubelet is to pull it.
        """
        several = len(self.router.owners.runtimes) > 1 and method.name != "PullImage"
        return several and not spec.annotations and not image_names.digest_of(spec.image)

    async def _by_name(self, call: ServerCall, method: Method, request: Any) -> None:
        """Route a name without a prefix to the first runtime that has an image of that name.

        Runtimes are asked in turn, so that an image of the primary never waits for another.
        """
        chosen = self.router.owners.primary
        for runtime in self.router.owners.runtimes:
            away = not runtime.answering and (runtime.primary or runtime.last.seen)
            if away and method.name == "RemoveImage":
                # It may have the image that the name means, so remove no other's.
                chosen = runtime
                break
            if await _id_in(runtime, request.image.image, call):
                chosen = runtime
                break
        to_runtime(call, chosen, method, request)

    def _may_be_an_id(self, name: str, method: Method) -> bool:
        if image_names.is_image_id(name):
            return True
        # An image to be pulled has no id yet, so what looks like the beginning of an id is a name.
        several = len(self.router.owners.runtimes) > 1
        return several and method.name != "PullImage" and image_names.begins_image_id(name)

    async def _by_id(self, call: ServerCall, method: Method, request: Any) -> None:
        """Route an image id, or its beginning, to the runtime that has the image."""
        runtimes = self.router.owners.runtimes
        given = request.image.image
        holders = await _holders(runtimes, given, call)
        if len(set(holders.values())) > 1:
            raise _several(given, holders)
        for image_id in holders.values():
            request.image.image = image_id
        if method.name == "RemoveImage" and len(holders) > 1:
            await _remove(call, method, request, list(holders))
            return
        changed = request.image.image != given
        to_runtime(call, next(iter(holders), runtimes[0]), method, request, changed)


def _several(given: str, holders: Mapping[Runtime, str]) -> RpcError:
    shown = ", ".join(f"{image_id} of {r.name}" for r, image_id in holders.items())
    return RpcError(
        Code.FAILED_PRECONDITION,
        f"image {given} is the beginning of several images' ids: {shown}; give more of it",
    )


def to_runtime(
    call: ServerCall, runtime: Runtime, method: Method, request: Any, changed: bool = False
) -> None:
    """Pass a call on with its image names as the runtime calls them.

    Args:
        call, runtime, method: the call and its runtime.
        request: its message.
        changed: whether it differs from what the client sent.
    """
    if not runtime.primary:
        change = image_names.inside(runtime.config.image_prefix)
        changed = image_names.in_request(request, change) or changed

    def note(answer: Any) -> bool:
        call.subjects["image_id"] = answer.image_ref
        return False

    look = note if method.name == "PullImage" else None
    forward(call, runtime, method, request if changed else None, look)


async def _holders(
    runtimes: Sequence[Runtime], given: str, call: ServerCall
) -> Mapping[Runtime, str]:
    """Return the runtimes that have an image, with its id; use last known images while away.

    The primary's image of that name precedes all images with such an id.
    """
    if len(runtimes) == 1:
        return {runtimes[0]: given}
    ids = await asyncio.gather(*(_id_in(r, given, call) for r in runtimes))
    holders = {r: i for r, i in zip(runtimes, ids, strict=True) if i}
    if image_names.is_image_id(given):
        return dict.fromkeys(holders, given)
    named = holders.get(runtimes[0])
    if named is not None and not _begins(named, given):
        return {runtimes[0]: given}
    begun = {r: i for r, i in holders.items() if _begins(i, given)}
    return begun or dict.fromkeys(list(holders)[:1], given)


async def _id_in(runtime: Runtime, given: str, call: ServerCall) -> str:
    """Return the id of a runtime's image with this id, beginning or name; "" if it has none.

    Raises:
        RpcError: FAILED_PRECONDITION if several of its images' ids begin so.
    """
    if runtime.answering:
        request = _STATUS.request()
        request.image.image = given
        try:
            reply = await runtime.ask(
                _STATUS, request.SerializeToString(), remaining=call.remaining()
            )
        except RpcError as error:
            if error.code in KNOWS_NONE:
                return ""
        else:
            return str(parse_response(_STATUS, reply.payload, runtime.where).image.id)
    known = [image_id for image_id in runtime.last.images if _begins(image_id, given)]
    if len(known) > 1:
        shown = ", ".join(sorted(known)[:3])
        raise RpcError(
            Code.FAILED_PRECONDITION,
            f"image {given} is the beginning of several images' ids in {runtime.name}: {shown}; "
            "give more of it",
        )
    return known[0] if known else ""


def _begins(image_id: str, given: str) -> bool:
    return image_id.removeprefix("sha256:").startswith(given.removeprefix("sha256:"))


async def _remove(
    call: ServerCall, method: Method, request: Any, holders: Sequence[Runtime]
) -> None:
    """Remove an image from all runtimes that have it."""
    for runtime in holders:
        if not runtime.answering:
            raise runtime.away_error()
    try:
        replies = await asyncio.gather(
            *(
                r.call(
                    method,
                    request.SerializeToString(),
                    metadata=call.metadata,
                    timeout=call.remaining(),
                )
                for r in holders
            )
        )
        for runtime in holders:
            runtime.last.did(method.name)
    finally:
        for runtime in holders:
            runtime.note_change()
    call.send_message(replies[0].payload)
    call.finish()
