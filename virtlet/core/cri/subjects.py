"""What a call is about: the pod, VM and image that its request names.

Ids may be cut short, as crictl prints them: the beginning of one id is as good as the id, as in
containerd, whose index of truncated ids does the same for every call and filter.
"""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from virtlet.core.store.records import PodRecord, VmRecord
from virtlet.core.store.store import Store
from virtlet.cri import api_pb2 as cri
from virtlet.errors import FailedPrecondition
from virtlet.model.image import Image, shown_name
from virtlet.model.reference import Reference, is_id, parse_reference

POD, VM = "pod_sandbox_id", "container_id"
_KINDS = {POD: "pod sandbox", VM: "container"}
_SHOWN = 3
"""Ids that are listed where a beginning is that of several."""
_LONGEST = 256
"""Characters of a client's text that are logged."""


@frozen
class _Place:
    """Where in a request an id is."""

    field: str
    kind: str
    """`POD` or `VM`."""
    filtered: bool = False
    """Whether the field is in the request's `filter`."""


class Subjects:
    """Reads requests.

    Args:
        store: knows the pods and VMs.
        image: finds an image by its whole id.
    """

    def __init__(
        self, store: Store, image: Callable[[Reference], Image | None] = lambda reference: None
    ) -> None:
        self._store = store
        self._image = image

    def completer(self, request: Descriptor) -> Callable[[Message], None]:
        """What puts whole ids in the place of their beginnings in requests of a type.

        It raises FailedPrecondition where a beginning is that of several ids. An id that nothing
        has stays as it is: its call says what that means. Reads no more than the store's memory.
        """
        places = _places(request)

        def complete(message: Message) -> None:
            for place in places:
                self._complete(message, place)

        return complete

    def facts(self, request: Any, reply: Any = None) -> dict[str, str]:
        """The pod, VM and image of a call, by id and name, for its log line.

        Args:
            request: its message, with whole ids.
            reply: its answer, where it has one already.
        """
        facts: dict[str, str] = {}
        for name, kind in (("vm", VM), ("pod", POD)):
            given = getattr(request, kind, "") or getattr(reply, kind, "")
            if given:
                facts[name] = given[:_LONGEST]
        if getattr(request, "filter", None) and request.HasField("filter"):
            facts |= _filtered(request)
        facts |= self._asked(request)
        image_id = getattr(reply, "image_ref", "")
        if image_id:
            facts["image_id"] = image_id
        return {**self.names(facts), **facts}

    def names(self, facts: Mapping[str, Any]) -> dict[str, str]:
        """What is known of the pod and the VM whose ids a log line has."""
        known: dict[str, str] = {}
        vm = self._store.vms.get(str(facts.get("vm")))
        if vm is not None:
            config = vm.vm.config
            known["pod"] = vm.vm.pod.id
            known["pod_name"] = vm.vm.pod.name
            known["vm_name"] = config.metadata.name
            known["image"] = shown_name(config.user_image or config.image)
            known["image_id"] = vm.vm.image.id
        pod = self._store.pods.get(str(facts.get("pod")))
        if pod is not None:
            known["pod_name"] = pod.pod.name
        return known

    def _asked(self, request: Any) -> dict[str, str]:
        """What the request says itself of names and images."""
        given: dict[str, str] = {}
        config: Any = getattr(request, "config", None)
        spec: Any = getattr(request, "image", None)
        if isinstance(config, cri.ContainerConfig):
            given["vm_name"] = config.metadata.name
            spec = config.image
        pod = config if isinstance(config, cri.PodSandboxConfig) else None
        pod = pod or getattr(request, "sandbox_config", None)
        if pod is not None and pod.metadata.name:
            given["pod_name"] = f"{pod.metadata.namespace}/{pod.metadata.name}"
        if isinstance(spec, cri.ImageSpec):
            given |= self._of_image(spec)
        return {key: value[:_LONGEST] for key, value in given.items() if value}

    def _of_image(self, spec: cri.ImageSpec) -> dict[str, str]:
        image = self._image(parse_reference(spec.image)) if is_id(spec.image) else None
        if image is None:
            return {"image": shown_name(spec.user_specified_image or spec.image)}
        name = spec.user_specified_image or next(iter(image.names), "")
        return {"image": shown_name(name), "image_id": image.id}

    def _complete(self, message: Message, place: _Place) -> None:
        if place.filtered:
            if not message.HasField("filter"):
                return
            message = message.filter  # type: ignore[attr-defined]
        given = getattr(message, place.field)
        records = self._records(place.kind)
        if given and given not in records:
            whole = _whole(given, records, _KINDS[place.kind])
            if whole != given:
                setattr(message, place.field, whole)

    def _records(self, kind: str) -> Mapping[str, PodRecord | VmRecord]:
        return self._store.pods if kind == POD else self._store.vms


def _filtered(request: Any) -> dict[str, str]:
    """The ids in a request's filter, as facts."""
    given = {
        "vm" if place.kind == VM else "pod": getattr(request.filter, place.field)[:_LONGEST]
        for place in _places(request.DESCRIPTOR)
        if place.filtered
    }
    return {key: value for key, value in given.items() if value}


def _places(request: Descriptor) -> list[_Place]:
    """The places of ids in requests of a type."""
    places = [_Place(name, name) for name in _KINDS if name in request.fields_by_name]
    wanted = request.fields_by_name.get("filter")
    if wanted is None or wanted.message_type is None:
        return places
    fields = wanted.message_type.fields_by_name
    if POD in fields:
        places.append(_Place(POD, POD, filtered=True))
    if "id" in fields:
        kind = POD if "Sandbox" in wanted.message_type.name else VM
        places.append(_Place("id", kind, filtered=True))
    return places


def _whole(given: str, records: Mapping[str, PodRecord | VmRecord], what: str) -> str:
    found = [key for key, record in records.items() if key.startswith(given) and record.visible]
    if len(found) < 2:
        return found[0] if found else given
    shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
    raise FailedPrecondition(
        f"{what} id {given} is the beginning of {len(found)} ids: {shown}; give more of it"
    )
