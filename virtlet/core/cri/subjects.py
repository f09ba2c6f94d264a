"""What a call is about: the pod, VM and image that its request names.

Ids may be cut short, as crictl prints them: the beginning of one id is as good as the id, as in
containerd, whose index of truncated ids does the same for every call and filter.
"""

from collections.abc import Callable, Mapping

from attrs import frozen
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from virtlet.core.store.records import PodRecord, VmRecord
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition

POD, VM = "pod_sandbox_id", "container_id"
_KINDS = {POD: "pod sandbox", VM: "container"}
_SHOWN = 3
"""Ids that are listed where a beginning is that of several."""


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
    """

    def __init__(self, store: Store) -> None:
        self._store = store

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
