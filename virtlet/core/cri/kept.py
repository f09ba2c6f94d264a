"""Replies that are asked for again and again and say the same until a record changes."""

from collections.abc import Callable

from google.protobuf.message import Message


class Kept:
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
