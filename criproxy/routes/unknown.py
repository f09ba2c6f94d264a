"""Methods that the stubs do not know go to the owner of an id in the request, or the primary.

Calls of any kind pass: a stream in both directions is carried like a single message. Protobuf's
encoding shows where fields are but not their names: enough to find the id of a known sandbox or
container in a text field at the top level of a message.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.relay import Relay
from criproxy.rpc.status import Code
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime


@frozen
class Unknown:
    """Routes the calls.

    Args:
        owners: finds the owner of an id.
    """

    owners: Owners

    def __call__(self, call: ServerCall) -> None:
        """Route a call."""
        runtime, request = self._target(call)
        call.runtime = runtime.name
        # The path is the client's: unbounded names must not become labels of metrics.
        record = runtime.recorder("unknown")

        def ended(code: Code) -> None:
            record(code)
            runtime.note_change()

        Relay(call, runtime.open, where=runtime.where, request=request, ended=ended)

    def _target(self, call: ServerCall) -> tuple[Runtime, bytes | None]:
        if call.message is None or len(self.owners.runtimes) == 1:
            return self.owners.primary, None
        payload = call.payload()
        for field in texts(payload):
            owner = self.owners.known(field.text)
            if owner is not None:
                if owner.id != field.text:
                    return owner.runtime, replaced(payload, field, owner.id)
                return owner.runtime, None
        return self.owners.primary, None


#: More fields than any CRI request has; bounds the time for a hostile message.
_MOST_FIELDS = 256
_LONGEST_ID = 256


@frozen
class Text:
    """A text field's place in a message.

    Args:
        size_at: where the encoding of its size starts.
        end: where the field ends.
        text: what it says.
    """

    size_at: int
    end: int
    text: str


def texts(message: bytes) -> Iterator[Text]:
    """Yield the short texts among a message's own fields, up to the first malformed field."""
    position = 0
    for _ in range(_MOST_FIELDS):
        try:
            tag, position = _varint(message, position)
            kind = tag & 7
            if kind == 0:
                _, position = _varint(message, position)
            elif kind == 1:
                position += 8
            elif kind == 5:
                position += 4
            elif kind == 2:
                size_at = position
                size, start = _varint(message, position)
                position = start + size
                if 0 < size <= _LONGEST_ID and position <= len(message):
                    text = message[start:position].decode("utf-8", errors="ignore")
                    yield Text(size_at, position, text)
            else:
                return
        except ValueError:
            return


def replaced(message: bytes, field: Text, text: str) -> bytes:
    """Return the message with another text in the field."""
    new = text.encode()
    return message[: field.size_at] + _encoded(len(new)) + new + message[field.end :]


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position after it; raise ValueError without one."""
    value = shift = 0
    while shift < 64:
        if position >= len(data):
            raise ValueError("message ends")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("number too long")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
