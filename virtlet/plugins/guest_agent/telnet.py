"""Telnet as busybox's telnetd speaks it, without any of its options.

Source: RFC 854. Terminal sizes go another way, so every offer may stay unanswered.
"""

_IAC, _DONT, _WILL, _SB, _SE = 255, 254, 251, 250, 240


_GREETING = b"\r\r\n"
"""What telnetd prints first, before an empty issue file."""


class Telnet:
    """Encodes what is typed and takes commands out of what comes; keeps half a command."""

    def __init__(self) -> None:
        self._half = b""
        self._greeting = _GREETING

    def encode(self, data: bytes) -> bytes:
        """What to send for what was typed."""
        # A return on its own would swallow a line feed or a zero after it.
        return data.replace(b"\xff", b"\xff\xff").replace(b"\r", b"\r\0")

    def decode(self, data: bytes) -> bytes:
        """What was printed, out of what came."""
        data = self._half + data
        plain = bytearray()
        start = 0
        while (mark := data.find(_IAC, start)) >= 0:
            plain += data[start:mark]
            length = _command_length(data, mark)
            if length == 0:
                start = mark
                break
            if data[mark + 1] == _IAC:
                plain.append(_IAC)
            start = mark + length
        else:
            plain += data[start:]
            start = len(data)
        self._half = data[start:]
        return self._without_greeting(bytes(plain))

    def _without_greeting(self, data: bytes) -> bytes:
        while data and self._greeting:
            if data[0] != self._greeting[0]:
                self._greeting = b""
                break
            data, self._greeting = data[1:], self._greeting[1:]
        return data


def _command_length(data: bytes, mark: int) -> int:
    """Bytes of the command at `mark`, 0 when its end has not come yet."""
    if len(data) < mark + 2:
        return 0
    kind = data[mark + 1]
    if _WILL <= kind <= _DONT:
        return 3 if len(data) >= mark + 3 else 0
    if kind == _SB:
        end = data.find(bytes((_IAC, _SE)), mark)
        return end + 2 - mark if end >= 0 else 0
    return 2
