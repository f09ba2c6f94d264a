"""A terminal in the guest: what makes one there, and how to talk to it.

The agent has no terminals, so a program of the guest provides one: `script` of util-linux or
busybox, python3, or busybox's telnetd, which speaks telnet (RFC 854, without any of its options) on
its input and output. Terminal sizes go another way, so every offer may stay unanswered.
"""

import shlex
from collections.abc import Mapping, Sequence

_IAC, _DONT, _WILL, _SB, _SE = 255, 254, 251, 250, 240


_GREETING = b"\r\r\n"
"""What telnetd prints first, before an empty issue file."""

END_OF_INPUT = b"\x04"
"""What a terminal's user types for it: Ctrl-D."""
_HELPERS: Mapping[str, tuple[str, ...]] = {
    "script": ("script", "-q", "-f", "-c", "{run}", "/dev/null"),
    "python3": ("python3", "-c", "import pty, sys; pty.spawn(sys.argv[1:])", "{run}"),
    "telnetd": ("busybox", "telnetd", "-i", "-f", "/dev/null", "-l", "{run}"),
}


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


class Plain:
    """Bytes as they are."""

    def encode(self, data: bytes) -> bytes:
        """What to send for what was typed."""
        return data

    def decode(self, data: bytes) -> bytes:
        """What was printed, out of what came."""
        return data


Codec = Plain | Telnet


def helper_command(helper: str, directory: str) -> tuple[str, ...]:
    """The command that runs a session's launcher in a terminal."""
    return tuple(part.format(run=f"{directory}/run") for part in _HELPERS[helper])


def codec_of(helper: str) -> Codec:
    """How a helper's input and output are encoded."""
    return Telnet() if helper == "telnetd" else Plain()


def launcher(directory: str, argv: Sequence[str], path: str, size: tuple[int, int] | None) -> bytes:
    """The program that a helper runs in the terminal: it notes where it is and how it ends.

    Args:
        directory: the session's.
        argv: the command.
        path: the command's PATH.
        size: columns and rows, where they are known.
    """
    resize = f"stty cols {size[0]} rows {size[1]}" if size else ":"
    return f"""\
#!/bin/sh
trap : INT QUIT
tty >{directory}/tty
{{ stty sane; stty tab0; {resize}; }} 2>/dev/null
(PATH={shlex.quote(path)}; exec {shlex.join(argv)})
echo $? >{directory}/code
""".encode()
