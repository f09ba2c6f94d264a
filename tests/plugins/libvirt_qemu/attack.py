"""What a compromised emulator would try, run in its place: by path, descriptor, number and call.

vmwrapper starts it with the arguments of a real launch. It needs nothing but the interpreter. Each
try that succeeds is written, with what it gave, to the VM's own disk, which is its to write.

What it attacks comes in the variable ATTACK: a JSON object of paths to read, to write, to connect
to, processes and a TCP port of the node.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import resource
import signal
import socket
import stat
import struct
import threading
from collections.abc import Callable
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)


def read(path: str) -> str:
    """Read a file, or list a directory."""
    if os.path.isdir(path):
        return str(len(os.listdir(path)))
    os.close(os.open(path, os.O_RDONLY))
    return "readable"


def write(path: str) -> str:
    """Write to a file without changing it, or make and remove one in a directory."""
    if os.path.isdir(path):
        name = os.path.join(path, "planted")
        os.symlink("/etc/passwd", name)
        os.unlink(name)
    else:
        os.close(os.open(path, os.O_WRONLY))
    return "writable"


def replace(path: str) -> str:
    """Put a link in a file's place, and the file back."""
    os.rename(path, path + ".away")
    os.rename(path + ".away", path)
    return "replaced"


def connect(path: str) -> str:
    """Connect to a unix socket."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    return "connected"


def dial(port: int) -> str:
    """Connect to the node's loopback."""
    with socket.create_connection(("127.0.0.1", port), timeout=5):
        return "connected"


def touch(pid: int) -> str:
    """Send no signal, only the question whether one would be delivered."""
    os.kill(pid, 0)
    return "may be ended"


def limit(pid: int) -> str:
    """Set a limit of a process: of its time, say, which ends it."""
    resource.prlimit(pid, resource.RLIMIT_CORE, resource.prlimit(pid, resource.RLIMIT_CORE))
    return "limited"


def hinder(pid: int) -> str:
    """Choose the CPUs of a process."""
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
    return "hindered"


def slow(pid: int) -> str:
    """Make a process the last to run."""
    os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid))
    return "slowed"


def trace(pid: int) -> str:
    """Attach to a process as a debugger, and let it go."""
    attach, detach = 16, 17
    if LIBC.ptrace(attach, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.waitpid(pid, 0)
    LIBC.ptrace(detach, pid, 0, 0)
    return "traced"


def enter(number: int) -> str:
    """Make a namespace, for the capabilities that come with it. It has no other thread then."""
    if LIBC.unshare(number) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "made"


def dump(_: None) -> str:
    """Leave a core file with the guest's memory."""
    soft, _hard = resource.getrlimit(resource.RLIMIT_CORE)
    if soft in (0, 1):
        raise OSError("no core")
    return str(soft)


def gain(_: None) -> str:
    """Keep a way to privileges: a capability, or set-uid programs."""
    with open("/proc/self/status") as file:
        said = dict(line.split(":", 1) for line in file.read().splitlines())
    bounded = int(said["CapBnd"], 16) | int(said["CapEff"], 16)
    if not bounded and said["NoNewPrivs"].strip() == "1":
        raise OSError("nothing to gain")
    return said["CapBnd"].strip()


def ring(_: None) -> str:
    """Set io_uring up, whose requests pass filters of system calls by."""
    setup = 425
    descriptor = LIBC.syscall(setup, 1, ctypes.create_string_buffer(120))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)
    return "set up"


def signal_by_file(pid: int) -> str:
    """Have the kernel send a signal to a process when something can be read; no signal comes as
    long as O_ASYNC is not set."""
    setown, setown_ex, process = 8, 15, 1
    ends = socket.socketpair()
    with ends[0], ends[1]:
        try:
            fcntl.fcntl(ends[0], setown, pid)
        except OSError:
            fcntl.fcntl(ends[0], setown_ex, struct.pack("ii", process, pid))
        return "would be signalled"


def signal_by_socket(pid: int) -> str:
    """Likewise, by the call of sockets."""
    siocspgrp = 0x8902
    ends = socket.socketpair()
    with ends[0], ends[1]:
        fcntl.ioctl(ends[0], siocspgrp, pid.to_bytes(4, "little"))
        return "would be signalled"


def lease(path: str) -> str:
    """Have whoever opens a file of its own wait, the manager as well."""
    with open(path, "rb") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return "held"


def family(number: int) -> str:
    """Make a socket of a family that QEMU has no use for: a network namespace does not hold all."""
    kind = socket.SOCK_RAW if number == socket.AF_NETLINK else socket.SOCK_STREAM
    socket.socket(number, kind).close()
    return "made"


def inherit(_: None) -> str:
    """Find a descriptor that leads out: a directory, or a file that can be opened anew to write."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            kind = os.fstat(int(name)).st_mode
        except OSError:
            continue
        where = os.readlink(f"/proc/self/fd/{name}")
        if stat.S_ISDIR(kind) and not where.startswith("/proc/"):
            found.append(where)
        elif stat.S_ISREG(kind):
            with contextlib.suppress(OSError):
                os.close(os.open(f"/proc/self/fd/{name}", os.O_RDWR))
                found.append(where)
    if not found:
        raise OSError("nothing leads out")
    return ", ".join(found)


def share(pid: int) -> str:
    """Choose with whom a process shares a core. The kernel finds the command wrong, if asked."""
    sched_core, no_command = 62, 99
    LIBC.prctl(sched_core, no_command, pid, 0, 0)
    if ctypes.get_errno() == errno.EPERM:
        raise OSError("refused")
    return "chosen"


def fault(_: None) -> str:
    """Handle page faults itself, which makes races in the kernel easy to win."""
    userfaultfd, user_mode_only = 323 if os.uname().machine == "x86_64" else 282, 1
    descriptor = LIBC.syscall(userfaultfd, user_mode_only)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(descriptor)
    return "set up"


def look(_: None) -> str:
    """Find other processes in /proc."""
    others = [name for name in os.listdir("/proc") if name.isdigit()]
    if not others:
        raise OSError("nobody there")
    return str(len(others))


def start(_: None) -> str:
    """Start a process, which may outlive the emulator."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return "started"


def crowd(most: int) -> str:
    """Start threads without end: the node has a number of them for all."""
    threading.stack_size(1 << 16)
    gate, threads = threading.Event(), list[threading.Thread]()
    try:
        while len(threads) < most:
            thread = threading.Thread(target=gate.wait, daemon=True)
            try:
                thread.start()
            except RuntimeError:
                raise OSError(f"no more than {len(threads)}") from None
            threads.append(thread)
    finally:
        gate.set()
        for thread in threads:
            thread.join()
    return "a crowd"


def fill(_: None) -> str:
    """Make a file anywhere: each takes an inode, and a file system has a number of them for all."""
    walked = (directory for directory, *_ in os.walk("/"))
    for place in itertools.chain(("/tmp", "/var/tmp", "/dev/shm"), walked):
        name = os.path.join(place, "planted")
        with contextlib.suppress(OSError):
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.unlink(name)
            return place
    raise OSError("nowhere")


WAYS: dict[str, Callable[[Any], str]] = {
    "read": read,
    "write": write,
    "replace": replace,
    "connect": connect,
    "dial": dial,
    "touch": touch,
    "limit": limit,
    "hinder": hinder,
    "slow": slow,
    "trace": trace,
    "enter": enter,
    "dump": dump,
    "gain": gain,
    "look": look,
    "ring": ring,
    "signal by file": signal_by_file,
    "signal by socket": signal_by_socket,
    "lease": lease,
    "family": family,
    "inherit": inherit,
    "fault": fault,
    "share": share,
    "start": start,
    "crowd": crowd,
    "fill": fill,
}


def main() -> None:
    """Try everything, and tell what succeeded."""
    # The end of the launch comes as a signal; what was found so far would be lost.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    plan = json.loads(os.environ["ATTACK"])
    succeeded = {}
    refused = {}
    for name, (way, target) in plan["tries"].items():
        try:
            succeeded[name] = WAYS[way](target)
        except OSError as error:
            refused[name] = str(error)
    with open(plan["report"], "r+") as file:
        file.write(json.dumps({"succeeded": succeeded, "refused": refused}) + "\n")


if __name__ == "__main__":
    main()
