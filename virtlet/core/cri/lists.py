"""Lists and statuses, which are asked for every second and seldom change.

A record is immutable, so what it looks like in a list is made once; so is the whole list without a
filter, as bytes, for as long as nothing changes. The Stream* calls give the same in portions.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from virtlet.core.cri.calls import Call, CallKind

Record = TypeVar("Record")
Item = TypeVar("Item", bound=Message)
PORTION = 100
"""Items of one message."""


class ReplyCache:
    """Serialised replies by what they are about. Used on the event loop alone.

    Args:
        version: changes whenever a record does; no reply may depend on anything else.
    """

    def __init__(self, version: Callable[[], int]) -> None:
        self._version = version
        self._made: tuple[int, dict[str, bytes]] = (-1, {})

    def reply(self, key: str, make: Callable[[], Message]) -> bytes:
        """The reply about `key`.

        Args:
            key: an id.
            make: called when there is none since the last change. It looks the records up itself:
                what was looked up before may be older than the version.
        """
        # Asked first: a change in between makes the bytes newer than their number, never older.
        version = self._version()
        if self._made[0] != version:
            self._made = (version, {})
        known = self._made[1]
        if key not in known:
            known[key] = make().SerializeToString()
        return known[key]


class Listing(Generic[Record, Item]):
    """Records as list items.

    Args:
        records: the records by id, now; the same mapping's values are the same objects.
        version: changes whenever a record does.
        item: a record as a list item.
        visible: whether a record is listed at all.
        reply: a list of items as the reply.
    """

    def __init__(
        self,
        records: Callable[[], Mapping[str, Record]],
        version: Callable[[], int],
        item: Callable[[Record], Item],
        visible: Callable[[Record], bool],
        reply: Callable[[list[Item]], Message],
    ) -> None:
        self._records = records
        self._version = version
        self._item = item
        self._visible = visible
        self._reply = reply
        self._made: dict[str, tuple[Record, Item]] = {}
        self._whole: tuple[int, bytes] = (-1, b"")

    def whole(self) -> bytes:
        """The reply with everything, serialised."""
        # Asked first: a change in between makes the bytes newer than their number, never older.
        version = self._version()
        if self._whole[0] != version:
            items = self.items(lambda record: True)
            self._whole = (version, self._reply(items).SerializeToString())
        return self._whole[1]

    def items(self, wanted: Callable[[Record], bool]) -> list[Item]:
        """The items of the records that are wanted."""
        records = self._records()
        if len(self._made) > 2 * len(records) + 100:
            self._made = {key: made for key, made in self._made.items() if key in records}
        return list(self._items(records, wanted))

    def _items(
        self, records: Mapping[str, Record], wanted: Callable[[Record], bool]
    ) -> Iterable[Item]:
        for key, record in records.items():
            if not self._visible(record) or not wanted(record):
                continue
            made = self._made.get(key)
            if made is None or made[0] is not record:
                made = self._made[key] = (record, self._item(record))
            yield made[1]


def streamed(
    name: str,
    kind: CallKind,
    items: Callable[[Any], Sequence[Any]],
    reply: Callable[[list[Any]], Any],
) -> Call:
    """The streamed form of a list call.

    Args:
        name: `Service.Method` of the streamed call; its request has the fields of the unary one.
        kind: where the unary call is answered.
        items: what a request lists.
        reply: makes a message of a portion of it.
    """

    async def stream(request: Any) -> AsyncIterator[Any]:
        if kind is CallKind.READ:
            found = list(items(request))
        else:
            found = list(await asyncio.to_thread(items, request))
        for start in range(0, len(found), PORTION):
            yield reply(found[start : start + PORTION])

    return Call(name, CallKind.STREAM, stream)
