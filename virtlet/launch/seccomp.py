"""The filter of system calls that a jailed emulator gets beside QEMU's own.

Processes of one user may signal each other and set each other's limits and priorities, whatever
namespaces they are in, and QEMU's filter lets it. This one is short on purpose: what reaches other
processes, new namespaces, mounts, keys, BPF, sockets that no namespace holds. Source: seccomp(2),
<linux/bpf_common.h>.
"""

import errno
import os
import struct
from collections.abc import Iterable, Mapping

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
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NAMESPACES = 0x7E02_0000
"""CLONE_NEWNS to CLONE_NEWNET of <linux/sched.h>."""
_X32 = 0x4000_0000
"""Bit of the numbers of another set of calls, on x86_64."""

_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24
"""Where struct seccomp_data has them; of arguments, their lower halves."""
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000


def emulator_filter(pid: int, *, io_uring: bool = False) -> bytes:
    """The program for one emulator, as an array of struct sock_filter.

    Args:
        pid: the process that becomes the emulator.
        io_uring: whether it may use io_uring.

    Raises:
        FailedPrecondition: the machine's calls are not known here.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise FailedPrecondition(
            f"emulators cannot be jailed on {machine}, only on {' and '.join(_ARCHITECTURES)}; see "
            "the setting emulatorJail"
        )
    which = list(_ARCHITECTURES).index(machine)

    def numbers(calls: Mapping[str, tuple[int, int]]) -> list[int]:
        return [call[which] for call in calls.values()]

    # Each jump names where it goes if its test holds; it goes on otherwise.
    steps: list[tuple[int, int, str]] = [
        (_LOAD, _ARCHITECTURE, ""),
        (_EQUAL, _ARCHITECTURES[machine], "known"),
        (_RETURN, _ERRNO | errno.EPERM, ""),
    ]
    labels = {"known": len(steps)}
    # ioctl comes first, as KVM runs its vCPUs by it.
    steps += [(_LOAD, _NUMBER, ""), (_EQUAL, _IOCTL[which], "ioctl"), (_AT_LEAST, _X32, "refused")]
    refused = _REFUSED if io_uring else _REFUSED | _IO_URING
    steps += [(_EQUAL, number, "refused") for number in numbers(refused)]
    steps += [(_EQUAL, number, "other") for number in numbers(_OTHERS)]
    steps += [
        (_EQUAL, _FCNTL[which], "fcntl"),
        (_EQUAL, _PRCTL[which], "prctl"),
        (_EQUAL, _SOCKET[which], "socket"),
        (_EQUAL, _CLONE[which], "clone"),
        # Its flags are out of reach; the C library takes clone where this is missing.
        (_EQUAL, _CLONE3[which], "missing"),
        (_RETURN, _ALLOW, ""),
    ]

    def part(label: str, load: int, tests: Iterable[tuple[int, int, str]], end: int) -> None:
        """What a call goes through that is judged by an argument."""
        labels[label] = len(steps)
        steps.extend([(_LOAD, load, ""), *tests, (_RETURN, end, "")])

    eperm = _ERRNO | errno.EPERM
    part("ioctl", _SECOND, [(_EQUAL, value, "refused") for value in _IOCTL_REFUSED], _ALLOW)
    part("fcntl", _SECOND, [(_EQUAL, value, "refused") for value in _FCNTL_REFUSED], _ALLOW)
    part("prctl", _FIRST, [(_EQUAL, value, "refused") for value in _PRCTL_REFUSED], _ALLOW)
    part("clone", _FIRST, [(_HAS_BITS, _NAMESPACES, "refused")], _ALLOW)
    part("socket", _FIRST, [(_EQUAL, family, "allowed") for family in _FAMILIES], eperm)
    part("other", _FIRST, [(_EQUAL, 0, "allowed"), (_EQUAL, pid, "allowed")], eperm)
    for label, end in (
        ("refused", eperm),
        ("allowed", _ALLOW),
        ("missing", _ERRNO | errno.ENOSYS),
    ):
        labels[label] = len(steps)
        steps.append((_RETURN, end, ""))
    return b"".join(
        struct.pack("=HBBI", code, labels[to] - at - 1 if to else 0, 0, value)
        for at, (code, value, to) in enumerate(steps)
    )
