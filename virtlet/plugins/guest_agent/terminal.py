"""A terminal in the guest: what makes one there, and how to talk to it.

The agent has no terminals, so a program of the guest provides one: `script` of util-linux or
busybox, python3, or busybox's telnetd, which speaks telnet on its input and output.
"""

import shlex
from collections.abc import Mapping, Sequence

from virtlet.plugins.guest_agent.telnet import Telnet

END_OF_INPUT = b"\x04"
"""What a terminal's user types for it: Ctrl-D."""

_HELPERS: Mapping[str, tuple[str, ...]] = {
    "script": ("script", "-q", "-f", "-c", "{run}", "/dev/null"),
    "python3": ("python3", "-c", "import pty, sys; pty.spawn(sys.argv[1:])", "{run}"),
    "telnetd": ("busybox", "telnetd", "-i", "-f", "/dev/null", "-l", "{run}"),
}


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
