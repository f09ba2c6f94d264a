"""Run a command as a systemd unit would: `python tests/confined.py UNIT COMMAND ARGUMENT...`.

Applies what a unit of deploy/ restricts a process to by capabilities, system calls and umask.
What takes mounts or a cgroup (ProtectSystem, DevicePolicy, IPAddressDeny) is left out, and so is
RestrictSUIDSGID. systemd.exec(5) says what each setting means.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

Settings = dict[str, list[str]]
Comparison = tuple[int, int, int, int]
"""Of a system call's argument: its number, operator, and one or two values."""

_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)  # in the order of <linux/capability.h>
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}
_NAMESPACES = {
    "mnt": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
}
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38  # <linux/prctl.h>
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000  # <seccomp.h>, as the operators
_NE, _EQ, _GT, _MASKED = 1, 4, 6, 7
_LAST_FAMILY = 45


def settings(unit: Path) -> Settings:
    """All values of each key of a unit's [Service], in their order."""
    found: Settings = {}
    section = unit.read_text().split("[Service]")[1].split("[Install]")[0]
    for line in section.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def mask(unit: Settings) -> int:
    """The capabilities that a unit allows, as CapBnd of /proc/PID/status has them."""
    kept = set(" ".join(unit["CapabilityBoundingSet"]).split())
    numbers = enumerate(_CAPABILITIES.split())
    return sum(1 << number for number, name in numbers if f"CAP_{name}" in kept)


class _Argument(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


class _Filter:
    def __init__(self, default: int) -> None:
        self._lib = ctypes.CDLL("libseccomp.so.2")
        self._lib.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._lib.seccomp_init(default))

    def add(self, action: int, call: str, *comparisons: Comparison) -> None:
        number = self._lib.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return  # another architecture's
        array = (_Argument * len(comparisons))(*(_Argument(*each) for each in comparisons))
        done = self._lib.seccomp_rule_add_array(
            self._context, action, number, len(comparisons), array
        )
        assert done == 0, (call, os.strerror(-done))

    def load(self) -> None:
        done = self._lib.seccomp_load(self._context)
        assert done == 0, os.strerror(-done)


@functools.cache
def _sets() -> dict[str, list[str]]:
    """The sets of system calls that systemd knows, with their members, which may be sets."""
    command = ["systemd-analyze", "--no-pager", "syscall-filter"]
    found: dict[str, list[str]] = {}
    path = {"PATH": os.environ["PATH"]}  # without a NOTIFY_SOCKET of another
    text = subprocess.check_output(command, env=path, stderr=subprocess.DEVNULL, text=True)
    for line in text.splitlines():
        if line.startswith("@"):
            members = found.setdefault(line, [])
        elif line.startswith("    ") and not line.startswith("    #"):
            members.append(line.strip())
    return found


def _calls(words: Iterable[str]) -> set[str]:
    """The system calls of a filter's words, sets (`@mount`) replaced by their members."""
    calls: set[str] = set()
    for word in words:
        calls |= _calls(_sets()[word]) if word.startswith("@") else {word}
    return calls


def _restrict_arguments(unit: Settings) -> None:
    """Refuse calls by their arguments."""
    filter_, refuse = _Filter(_ALLOW), _ERRNO | errno.EPERM
    if families := unit.get("RestrictAddressFamilies"):
        allowed = {_FAMILIES[name] for line in families for name in line.split()}
        no_family = _ERRNO | errno.EAFNOSUPPORT
        for family in set(range(_LAST_FAMILY + 1)) - allowed:
            filter_.add(no_family, "socket", (0, _EQ, family, 0))
        filter_.add(no_family, "socket", (0, _GT, _LAST_FAMILY, 0))
    if namespaces := " ".join(unit.get("RestrictNamespaces", [])):
        denied = set(_NAMESPACES) if namespaces == "yes" else set(namespaces.lstrip("~").split())
        for flag in (_NAMESPACES[name] for name in denied):
            for call, argument in (("unshare", 0), ("clone", 0), ("setns", 1)):
                filter_.add(refuse, call, (argument, _MASKED, flag, flag))
        filter_.add(refuse, "setns", (1, _EQ, 0, 0))
        filter_.add(_ERRNO | errno.ENOSYS, "clone3")
    if unit.get("LockPersonality") == ["yes"]:
        filter_.add(refuse, "personality", (0, _NE, 0, 0))
    if unit.get("RestrictRealtime") == ["yes"]:
        for policy in (os.SCHED_FIFO, os.SCHED_RR, 6):
            filter_.add(refuse, "sched_setscheduler", (1, _EQ, policy, 0))
    if unit.get("MemoryDenyWriteExecute") == ["yes"]:
        filter_.add(refuse, "mmap", (2, _MASKED, 6, 6))
        filter_.add(refuse, "mprotect", (2, _MASKED, 4, 4))
        filter_.add(refuse, "pkey_mprotect", (2, _MASKED, 4, 4))
        filter_.add(refuse, "shmat", (2, _MASKED, 0o100000, 0o100000))
    filter_.load()


def _restrict_calls(words: list[str]) -> None:
    """Apply SystemCallFilter: the first line says whether it lists what is allowed or denied."""
    if not words:
        return
    allow_list = not words[0].startswith("~")
    calls = _calls(["@default"]) if allow_list else set()
    for line in words:
        named = _calls(line.lstrip("~").split())
        calls = calls | named if line.startswith("~") != allow_list else calls - named
    refuse = _ERRNO | errno.EPERM
    filter_ = _Filter(refuse if allow_list else _ALLOW)
    for call in calls:
        filter_.add(_ALLOW if allow_list else refuse, call)
    filter_.load()


def confine(unit: Settings) -> None:
    """Restrict this process, and what it starts, as the unit's settings say."""
    prctl = ctypes.CDLL(None).prctl
    if (bounds := unit.get("CapabilityBoundingSet")) is not None:
        kept = set(" ".join(bounds).split())
        for number, name in enumerate(_CAPABILITIES.split()):
            if f"CAP_{name}" not in kept:
                assert prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) == 0, name
    assert unit["NoNewPrivileges"] == ["yes"]  # as the filters of system calls demand
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if mask := unit.get("UMask"):
        os.umask(int(mask[-1], 8))
    _sets()  # before a filter may forbid to ask
    _restrict_arguments(unit)
    _restrict_calls(unit.get("SystemCallFilter", []))


if __name__ == "__main__":
    confine(settings(Path(sys.argv[1])))
    os.execvp(sys.argv[2], sys.argv[2:])
