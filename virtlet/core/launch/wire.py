"""What vmwrapper and the launch server say to each other.

Records that each end with a NUL byte, which no argument, variable or path can hold. Reading them
takes no module that would cost vmwrapper its start-up time; it has the other half of this file.

The wrapper sends the VM's id and the token. The server answers with records whose first letter
says what they are, in this order, and closes; all descriptors come with the first byte.

    f NAME          a descriptor's name, as many as descriptors
    a ARGUMENT      an argument to append
    e NAME=VALUE    a variable to set
    x PATH          the emulator to start instead of the wrapper's own
    .               the end: an answer without it was cut off
    ! TEXT          refused, and why; nothing else comes
"""

import os

from virtlet.core.launch.merge import Launch

LONGEST_REQUEST = 1024
_END = b"\0"


def parse_request(text: bytes) -> tuple[str, str] | None:
    """VM id and token, or None when it is not whole yet.

    Raises:
        ValueError: it will never make sense.
    """
    if len(text) > LONGEST_REQUEST or text.count(_END) > 2:
        raise ValueError("no request")
    if text.count(_END) < 2 or not text.endswith(_END):
        return None
    vm_id, token, _ = text.split(_END)
    return vm_id.decode("ascii"), token.decode("ascii")


def refusal(reason: str) -> bytes:
    """The answer to a wrapper that gets nothing."""
    return b"!" + reason.encode() + _END


def answer(launch: Launch) -> bytes:
    """The answer that hands a launch over."""
    records = [
        *(b"f" + item.name.encode() for item in launch.fds),
        *(b"a" + os.fsencode(argument) for argument in launch.arguments),
        *(b"e" + os.fsencode(f"{name}={value}") for name, value in launch.environment.items()),
        *([b"x" + os.fsencode(launch.emulator)] if launch.emulator else []),
        b".",
    ]
    return _END.join(records) + _END
