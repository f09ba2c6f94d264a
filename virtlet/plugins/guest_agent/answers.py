"""Answers of agents, bounded while they arrive: an agent is whatever a guest runs.

An honest answer is a small JSON object that may hold a few long base64 texts. So what is parsed as
JSON is small, and long texts are decoded in pieces as they come. No single step is long.
"""

import binascii
import contextlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from typing import Any

from virtlet.errors import ResourceExhausted, Unavailable

MOST_STRUCTURE = 64 << 10
"""Bytes of an answer without its long texts."""
LONG_TEXT = 16 << 10
"""Bytes of a text from which it is decoded apart; a shorter one may be anything."""
MOST_NODES = 256
"""Lists, objects and commas, so it is also the bound of nesting; and texts."""
MOST_LONG_TEXTS = 2
"""A command's output and error output."""
MOST_BEGINNINGS = 8
"""Times that an answer may begin again after the rest of another."""
UNCOUNTED = 512 << 10
"""Bytes of a long text that no budget counts, so that small outputs always come through."""

_OUTSIDE = re.compile(rb'["\xff]')
_INSIDE = re.compile(rb'["\\\xff]')


class Nonsense(Exception):
    """What came is no answer of an agent; the text says why."""


class ReplyBudget:
    """Memory for long texts of a guest's answers, or of all guests' together.

    Args:
        size: bytes.
        shared: a budget from which the same is taken.
    """

    def __init__(self, size: int, shared: "ReplyBudget | None" = None) -> None:
        self._left = size
        self._shared = shared
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Reserve bytes.

        Raises:
            ResourceExhausted: there are no more.
        """
        with self._lock:
            if size > self._left:
                raise ResourceExhausted(
                    "the outputs of the commands that run in guests now are too large together: "
                    "try again"
                )
            if self._shared is not None:
                self._shared.take(size)
            self._left -= size

    def give_back(self, size: int) -> None:
        """Return what was reserved."""
        with self._lock:
            self._left += size
        if self._shared is not None:
            self._shared.give_back(size)


class Data:
    """Bytes that a guest sent as base64, counted in a budget until they are let go.

    Args:
        budget: None for no counting.
    """

    def __init__(self, budget: ReplyBudget | None = None) -> None:
        self._budget = budget
        self._pieces: list[bytes] = []
        self._size = self._reserved = 0
        self._rest = b""
        self._at_end = False

    def decode(self, text: bytes) -> None:
        """Append what the next part of the base64 text stands for.

        Raises:
            Nonsense: it is no base64.
            ResourceExhausted: the budget has no more.
        """
        text = self._rest + text
        whole = len(text) // 4 * 4
        self._rest = text[whole:]
        if not whole:
            return
        if self._at_end:
            raise Nonsense("base64 goes on after its end")
        self._size += whole // 4 * 3
        needed = self._size - UNCOUNTED - self._reserved
        if self._budget is not None and needed > 0:
            self._budget.take(needed)
            self._reserved += needed
        try:
            self._pieces.append(binascii.a2b_base64(text[:whole], strict_mode=True))
        except binascii.Error:
            raise Nonsense("a long text is no base64") from None
        self._at_end = text[whole - 1] == ord("=")

    def end(self) -> None:
        """The text is complete.

        Raises:
            Nonsense: it ends too early.
        """
        if self._rest:
            raise Nonsense("a long text is no base64")

    def pieces(self) -> Iterator[bytes]:
        """Give away the bytes piece by piece; each is let go of before the next."""
        self._pieces.reverse()
        while self._pieces:
            yield self._pieces.pop()
        self.let_go()

    def whole(self) -> bytes:
        """Give away all bytes at once."""
        data = b"".join(self._pieces)
        self.let_go()
        return data

    def let_go(self) -> None:
        """Drop what is there."""
        self._pieces.clear()
        if self._budget is not None and self._reserved:
            self._budget.give_back(self._reserved)
            self._reserved = 0

    def __del__(self) -> None:
        self.let_go()


def data_of(value: Any, name: str) -> Data:
    """The bytes of a value of `Answer.document`.

    Raises:
        Unavailable: it is neither long data nor base64.
    """
    if isinstance(value, Data):
        return value
    data = Data()
    if value is None:
        return data
    try:
        data.decode(value.encode())
        data.end()
    except (AttributeError, UnicodeEncodeError, Nonsense):
        raise Unavailable(f"the guest agent answers with a {name} that is no base64") from None
    return data


class Answer:
    """One answer, a line of JSON, as far as it has come.

    Args:
        limit: bytes of the line; an honest agent's is not longer.
        budget: for long texts; None drops them.
    """

    def __init__(self, limit: int, budget: ReplyBudget | None) -> None:
        self._limit = limit
        self._budget = budget
        self._size = self._beginnings = self._texts = 0
        self._mark = secrets.token_hex(8)
        """Stands in the structure for long texts; no guest can know it."""
        self._begin()

    @property
    def holds_data(self) -> bool:
        """Whether a long text has begun."""
        return bool(self._long)

    def _begin(self) -> None:
        self._beginnings += 1
        if self._beginnings > MOST_BEGINNINGS:
            raise Nonsense("the guest sent the rests of too many answers")
        self._structure = bytearray()
        self._long: dict[str, Data] = {}
        self._text_at = -1
        """Where in the structure the text begins that has no end yet; -1 outside of texts."""
        self._decoding: Data | None = None
        self._escaped = False

    def feed(self, part: bytes) -> None:
        """Take the next part of the line, without its end.

        Raises:
            Nonsense: it cannot become an answer.
            ResourceExhausted: the budget has no more.
        """
        self._size += len(part)
        if self._size > self._limit:
            raise Nonsense(f"the guest sent an answer of more than {self._limit} bytes")
        at = 0
        while at < len(part):
            at = self._step(part, at)
            if len(self._structure) > MOST_STRUCTURE:
                raise Nonsense("the guest sent an answer with too much in it")

    def _step(self, part: bytes, at: int) -> int:
        """Take what is up to the next byte that means something, and that byte."""
        if self._escaped:
            self._escaped = False
            self._structure += part[at : at + 1]
            return at + 1
        outside = self._text_at < 0
        found = (_OUTSIDE if outside else _INSIDE).search(part, at)
        end = found.start() if found else len(part)
        if outside:
            self._structure += part[at:end]
        else:
            self._take_text(part[at:end])
        if found is None:
            return end
        if found[0] == b"\xff":  # what was before it is another answer's rest
            self._begin()
        elif found[0] == b'"':
            self._turn(outside)
        else:
            if self._decoding is not None:
                raise Nonsense("a long text is no base64")
            self._escaped = True
            self._structure += b"\\"
        return end + 1

    def _turn(self, outside: bool) -> None:
        """Begin a text, or end one."""
        if outside:
            self._texts += 1
            if self._texts > MOST_NODES:
                raise Nonsense("the guest sent an answer with too much in it")
            self._text_at = len(self._structure)
            self._structure += b'"'
            return
        if self._decoding is not None:
            self._decoding.end()
            self._decoding = None
        self._structure += b'"'
        self._text_at = -1

    def _take_text(self, text: bytes) -> None:
        if self._decoding is None:
            self._structure += text
            if len(self._structure) - self._text_at <= LONG_TEXT:
                return
            begun = self._structure[self._text_at + 1 :]
            if b"\\" in begun:
                raise Nonsense("a long text is no base64")
            if len(self._long) == MOST_LONG_TEXTS:
                raise Nonsense("the guest sent an answer with too much in it")
            self._decoding = Data(self._budget)
            name = f"{self._mark}{len(self._long)}"
            self._long[name] = self._decoding
            self._structure[self._text_at + 1 :] = name.encode()
            text = bytes(begun)
        if self._budget is not None:
            self._decoding.decode(text)

    def document(self) -> dict[str, Any]:
        """The object that the line is, with Data for long texts in what it returns.

        Raises:
            Nonsense: it is none.
        """
        nodes = sum(map(self._structure.count, (b"{", b"[", b",")))
        if nodes > MOST_NODES:
            raise Nonsense("the guest sent an answer with too much in it")
        parsed = None
        with contextlib.suppress(ValueError, RecursionError):
            parsed = json.loads(self._structure.decode())
        if not isinstance(parsed, dict):
            raise Nonsense("the guest sent something that is no answer of an agent")
        returned = parsed.get("return")
        if isinstance(returned, str):
            parsed["return"] = self._long.get(returned, returned)
        elif isinstance(returned, dict):
            for name, value in returned.items():
                if isinstance(value, str):
                    returned[name] = self._long.get(value, value)
        return parsed
