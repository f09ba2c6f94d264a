"""What a compromised emulator would try, run in its place: by path, descriptor, number and call.

vmwrapper starts it with the arguments of a real launch. It needs nothing but the interpreter. Each
try that succeeds is written, with what it gave, to the VM's own disk, which is its to write.

What it attacks comes in the variable ATTACK: a JSON object of paths to read, to write, to connect
to, processes and a TCP port of the node.
"""

import ctypes
import json
import os
import resource
import signal
import socket
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
    """Make a namespace, for the capabilities that come with it."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if LIBC.unshare(number) == 0 else 1)
    if os.waitpid(pid, 0)[1] != 0:
        raise OSError("refused")
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


def look(_: None) -> str:
    """Find other processes in /proc."""
    others = [name for name in os.listdir("/proc") if name.isdigit()]
    if not others:
        raise OSError("nobody there")
    return str(len(others))


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
