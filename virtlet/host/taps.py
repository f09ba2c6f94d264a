"""Taps: network interfaces whose far end is a file descriptor."""

import errno
import fcntl
import os
import socket
import struct

from virtlet.errors import FailedPrecondition

# From <linux/if_tun.h>.
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_MULTI_QUEUE = 0x0100


def open_tap(name: str, *, multi_queue: bool = False) -> int:
    """Open the far end of a tap of the calling thread's network namespace.

    The tap must have been made with `vnet_hdr` and without `pi`, as QEMU uses it. Only one
    descriptor can be open at a time, or one for each queue where it was made with `multi_queue`.

    Returns:
        A descriptor, closed on exec, that the caller owns.

    Raises:
        FailedPrecondition: there is no such tap, or another process holds it.
    """
    try:
        socket.if_nametoindex(name)
    except OSError:  # TUNSETIFF would make a new one
        raise FailedPrecondition(f"cannot open tap {name}: there is none of that name") from None
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FailedPrecondition(f"cannot open tap {name}: {error.strerror}") from None
    flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | (_IFF_MULTI_QUEUE if multi_queue else 0)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        reason = "another process holds it" if error.errno == errno.EBUSY else error.strerror
        raise FailedPrecondition(f"cannot open tap {name}: {reason}") from None
    return descriptor
