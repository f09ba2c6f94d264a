"""Filters of system calls: a jailed emulator's, beside QEMU's own, and a server's.

Processes of one user may signal each other and set each other's limits and priorities, whatever
namespaces they are in, and QEMU's filter lets it. These are short on purpose: what reaches other
processes, new namespaces, mounts, keys, BPF, sockets that no namespace holds. Source: seccomp(2),
<linux/bpf_common.h>.
"""

import errno
import os
import struct
from collections.abc import Mapping, Sequence

from virtlet.errors import FailedPrecondition

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH of <linux/audit.h>, by uname's word."""

# Numbers of each call on x86_64 and aarch64.
_OTHERS = {
    "kill": (62, 129),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
}
"""Calls whose first argument is a process: only its own."""
_REFUSED: dict[str, tuple[int, int]] = {
    "tkill": (200, 130),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "ptrace": (101, 117),
    "kcmp": (312, 272),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
}
_IO_URING = {"io_uring_setup": (425, 425)}
"""Without it there is no ring for the other calls. QEMU does without unless it is asked for it."""
_FCNTL, _IOCTL, _PRCTL = (72, 25), (16, 29), (157, 167)
_FCNTL_REFUSED = (8, 15, 1024)
"""F_SETOWN and F_SETOWN_EX have the kernel send a signal of choice (F_SETSIG) to a process of
choice; F_SETLEASE has it hold up whoever opens the file, root as well."""
_IOCTL_REFUSED = (0x8901, 0x8902)
"""FIOSETOWN and SIOCSPGRP do what F_SETOWN does."""
_PRCTL_REFUSED = (62,)
"""PR_SCHED_CORE keeps a process of choice from sharing a core."""
_SOCKET = (41, 198)
_FAMILIES = (1, 2, 10)
"""AF_UNIX, AF_INET, AF_INET6: those of others are not all kept apart by network namespaces. A vsock
reaches the node and, where that is a VM, its host."""
_NETLINK = 16
"""AF_NETLINK, by which a server learns of addresses."""
_CAPSET = (126, 91)
_FCHOWN = (93, 55)
_KEEP_CAPABILITIES = 8
"""PR_SET_KEEPCAPS of <linux/prctl.h>."""
_CLONE, _CLONE3 = (56, 220), (435, 435)
_FORKS = {"fork": (57, 220), "vfork": (58, 220)}
"""Where a machine has no such calls, clone stands in their place."""
_CHILDREN = {**_FORKS, "clone": _CLONE, "clone3": _CLONE3}
_THREAD = 0x1_0000
"""CLONE_THREAD of <linux/sched.h>."""
_NAMESPACES = 0x7E02_0000
"""CLONE_NEWNS to CLONE_NEWNET of <linux/sched.h>."""
_X32 = 0x4000_0000
"""Bit of the numbers of another set of calls, on x86_64."""

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
"""Where struct seccomp_data has them; of arguments, their lower halves."""
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_EPERM = _ERRNO | errno.EPERM
_Step = tuple[int, int, str]
"""A code, its value, and the name of where it goes if its test holds; it goes on otherwise."""


def emulator_filter(pid: int, *, io_uring: bool = False, alone: bool = False) -> bytes:
    """The program for one emulator, as an array of struct sock_filter.

    Args:
        pid: the process that becomes the emulator.
        io_uring: whether it may use io_uring.
        alone: whether it may start no process, but threads.

    Raises:
        FailedPrecondition: the machine's calls are not known here.
    """
    which = _which()
    if which is None:
        raise FailedPrecondition(
            f"emulators cannot be jailed on {os.uname().machine}, only on "
            f"{' and '.join(_ARCHITECTURES)}; see the setting emulatorJail"
        )
    refused = _REFUSED if io_uring else _REFUSED | _IO_URING
    return _assembled(
        which,
        [
            # ioctl comes first, as KVM runs its vCPUs by it.
            (_EQUAL, _IOCTL[which], "ioctl"),
            (_AT_LEAST, _X32, "refuse"),
            *_each(refused, which, "refuse"),
            *_each(_OTHERS, which, "other"),
            (_EQUAL, _FCNTL[which], "fcntl"),
            (_EQUAL, _PRCTL[which], "prctl"),
            (_EQUAL, _SOCKET[which], "socket"),
            (_EQUAL, _CLONE[which], "clone"),
            # Its flags are out of reach; the C library takes clone where this is missing.
            (_EQUAL, _CLONE3[which], "missing"),
            *(_each(_FORKS, which, "refuse") if alone else ()),
            (_RETURN, _ALLOW, ""),
        ],
        {
            **_OWNERS,
            "prctl": _by(_FIRST, _PRCTL_REFUSED, "refuse", _ALLOW),
            "clone": [
                (_LOAD, _FIRST, ""),
                (_HAS_BITS, _NAMESPACES, "refuse"),
                *([(_HAS_BITS, _THREAD, "allow")] if alone else ()),
                (_RETURN, _EPERM if alone else _ALLOW, ""),
            ],
            "socket": _by(_FIRST, _FAMILIES, "allow", _EPERM),
            "other": _by(_FIRST, (0, pid), "allow", _EPERM),
            "missing": [(_RETURN, _ERRNO | errno.ENOSYS, "")],
        },
    )


def server_filter() -> bytes | None:
    """The program for a server that opens its sockets as root and then becomes another user.

    Such a server asks the kernel to keep capabilities beyond that, and gives that user its files.
    Here this does nothing and seems to succeed: the change of user takes all capabilities, and the
    files stay root's, without a complaint in the log. It has no children and no threads.

    Returns:
        An array of struct sock_filter; None where the machine's calls are not known here.
    """
    which = _which()
    if which is None:
        return None
    prctl = _by(_FIRST, _PRCTL_REFUSED, "refuse", _ALLOW)
    return _assembled(
        which,
        [
            (_AT_LEAST, _X32, "refuse"),
            (_EQUAL, _CAPSET[which], "pretend"),
            (_EQUAL, _FCHOWN[which], "pretend"),
            *_each(_REFUSED | _IO_URING | _CHILDREN, which, "refuse"),
            *_each(_OTHERS, which, "other"),
            (_EQUAL, _IOCTL[which], "ioctl"),
            (_EQUAL, _FCNTL[which], "fcntl"),
            (_EQUAL, _PRCTL[which], "prctl"),
            (_EQUAL, _SOCKET[which], "socket"),
            (_RETURN, _ALLOW, ""),
        ],
        {
            **_OWNERS,
            "prctl": [prctl[0], (_EQUAL, _KEEP_CAPABILITIES, "pretend"), *prctl[1:]],
            "socket": _by(_FIRST, (*_FAMILIES, _NETLINK), "allow", _EPERM),
            "other": _by(_FIRST, (0,), "allow", _EPERM),
            "pretend": [(_RETURN, _ERRNO, "")],
        },
    )


def _which() -> int | None:
    """Where this machine's numbers stand."""
    machine = os.uname().machine
    return list(_ARCHITECTURES).index(machine) if machine in _ARCHITECTURES else None


def _each(calls: Mapping[str, tuple[int, int]], which: int, to: str) -> list[_Step]:
    return [(_EQUAL, call[which], to) for call in calls.values()]


def _by(load: int, values: Sequence[int], to: str, end: int) -> list[_Step]:
    """What a call goes through that is judged by an argument."""
    return [(_LOAD, load, ""), *((_EQUAL, value, to) for value in values), (_RETURN, end, "")]


_OWNERS = {
    "ioctl": _by(_SECOND, _IOCTL_REFUSED, "refuse", _ALLOW),
    "fcntl": _by(_SECOND, _FCNTL_REFUSED, "refuse", _ALLOW),
}


def _assembled(which: int, steps: list[_Step], parts: Mapping[str, list[_Step]]) -> bytes:
    """The program that judges calls of this machine by these steps, and refuses all others.

    Args:
        which: see `_which`.
        steps: what is done with a call's number; the last returns.
        parts: where others go to, by name, beside `allow` and `refuse`.
    """
    whole: list[_Step] = [
        (_LOAD, _ARCHITECTURE, ""),
        (_EQUAL, list(_ARCHITECTURES.values())[which], "known"),
        (_RETURN, _EPERM, ""),
    ]
    ends = {"allow": [(_RETURN, _ALLOW, "")], "refuse": [(_RETURN, _EPERM, "")]}
    labels: dict[str, int] = {}
    for name, part in {"known": [(_LOAD, _NUMBER, ""), *steps], **parts, **ends}.items():
        labels[name] = len(whole)
        whole += part
    return b"".join(
        struct.pack("=HBBI", code, labels[to] - at - 1 if to else 0, 0, value)
        for at, (code, value, to) in enumerate(whole)
    )
