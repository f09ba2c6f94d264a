"""Terminal sizes: JSON objects on a stream of their own, read one by one."""

import json
import logging

from virtlet.core.streaming.sessions import InputStream, TerminalSize

logger = logging.getLogger(__name__)

# Go's client writes some 30 bytes; what is longer without being an object is no size.
_MAX_OBJECT = 256
_MAX_CELLS = 65535


class Resizes:
    """The sizes on a stream, the newest only where several wait; nothing without a stream."""

    def __init__(self, stream: InputStream | None) -> None:
        self._stream = stream
        self._rest = ""

    def __aiter__(self) -> "Resizes":
        return self

    async def __anext__(self) -> TerminalSize:
        while self._stream is not None:
            try:
                piece = await self._stream.read()
            except OSError:
                piece = b""
            if not piece:
                break
            self._rest += piece.decode("latin-1")
            try:
                if (size := self._newest()) is not None:
                    return size
            except (ValueError, KeyError, TypeError):
                logger.warning("a client sent a terminal size that is none; its sizes are ignored")
                break
        self._stream = None
        raise StopAsyncIteration

    def _newest(self) -> TerminalSize | None:
        """Return the last whole object's size; an unfinished one is kept for later."""
        *objects, rest = self._rest.split("}")
        # A size has no objects within, so a brace that closes ends it.
        self._rest = rest.lstrip()
        if self._rest and (len(rest) > _MAX_OBJECT or self._rest[0] != "{"):
            raise ValueError("not a terminal size")
        size = None
        for text in objects:
            if len(text) > _MAX_OBJECT:
                raise ValueError("not a terminal size")
            document = json.loads(text + "}")
            size = TerminalSize(_cells(document["Width"]), _cells(document["Height"]))
        return size


def _cells(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX_CELLS:
        raise ValueError("not a number of cells")
    return value
