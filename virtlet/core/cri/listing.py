"""Lists that are asked for every second and seldom change.

A record is immutable, so what it looks like in a list is made once; so is the whole list without
a filter, as bytes, for as long as nothing changes. Used on the event loop alone.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Generic, TypeVar

from google.protobuf.message import Message

Record = TypeVar("Record")
Item = TypeVar("Item", bound=Message)


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
