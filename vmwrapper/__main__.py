"""Stands where libvirt expects QEMU: fetches what the launch needs, then becomes QEMU.

libvirt starts it as a domain's <emulator>. Without our environment variables (libvirt asks for
QEMU's capabilities that way) it execs the emulator with its arguments untouched. With them it
shows the VM's one-time token at the manager's launch socket, receives arguments, environment and
open descriptors, and execs the emulator with them added. While it waits for the answer, the
manager moves it into the VM's cgroups. It imports little, because every VM's start waits for it.

The manager copies this file to where the emulator's user can read it, with the paths of the
interpreter and the emulator put in.
"""

import os
import sys

EMULATOR = "/usr/bin/qemu-system-x86_64"

# The other side has these names in virtlet/model/launch.py; a test holds them together.
ENV_SOCKET = "VIRTLET_LAUNCH_SOCKET"
ENV_VM = "VIRTLET_LAUNCH_VM"
ENV_TOKEN = "VIRTLET_LAUNCH_TOKEN"

# Exit statuses; the message goes to stderr, which libvirt writes to the domain's log.
EXIT_ENVIRONMENT = 71
EXIT_NO_SERVER = 72
EXIT_REFUSED = 73
EXIT_BROKEN = 74
EXIT_EXEC = 75

TIMEOUT = 20.0
"""Seconds to wait for the manager."""
MOST_FDS = 253
"""As many the kernel passes in one message (SCM_MAX_FD)."""


class Failure(Exception):
    """The launch is off.

    Args:
        status: exit status.
        message: one line that says what failed and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str]) -> int:
    """Become the emulator.

    Returns:
        An exit status, only when that failed.
    """
    environment = dict(os.environ)
    # The token must not stay visible in the emulator's environment.
    ours = [environment.pop(name, None) for name in (ENV_SOCKET, ENV_VM, ENV_TOKEN)]
    emulator = EMULATOR
    try:
        if any(ours):
            emulator, arguments = hand_over(ours, arguments, environment)
        else:
            drop_lent_capabilities()
        execute(emulator, arguments, environment)
    except Failure as failure:
        sys.stderr.write(f"vmwrapper: {failure}\n")
        return failure.status
    return 0


def hand_over(
    ours: list[str | None], arguments: list[str], environment: dict[str, str]
) -> tuple[str, list[str]]:
    """Fetch the launch and put it on top of what libvirt gave.

    Returns:
        The emulator's path and all its arguments; `environment` is updated.
    """
    path, vm, token = ours
    if not (path and vm and token):
        raise Failure(
            EXIT_ENVIRONMENT,
            f"{ENV_SOCKET}, {ENV_VM} and {ENV_TOKEN} must be set all or none: do not start this "
            "domain by hand, the manager starts it",
        )
    answer, fds = ask(path, vm, token)
    if answer.startswith(b"!"):
        reason = answer[1:].rstrip(b"\0").decode("utf-8", "replace")
        raise Failure(EXIT_REFUSED, f"the manager refused the launch of VM {vm}: {reason}")
    # The end is a record of its own: what was cut behind an argument may end in a dot, too.
    if answer != b".\0" and not answer.endswith(b"\0.\0"):
        raise Failure(
            EXIT_BROKEN, f"the manager broke off while it handed over VM {vm}: start it again"
        )
    try:
        emulator, added = unpack(answer, fds, environment)
    except (KeyError, ValueError):
        raise Failure(
            EXIT_BROKEN,
            f"the manager's answer for VM {vm} does not fit together: are manager and vmwrapper "
            "of one version?",
        ) from None
    return emulator, arguments + added


def unpack(answer: bytes, fds: list[int], environment: dict[str, str]) -> tuple[str, list[str]]:
    """Read the answer's records; virtlet/launch/server.py describes them.

    Returns:
        The emulator's path and the arguments to append; `environment` is updated.
    """
    emulator, added, names = EMULATOR, [], []
    for record in answer.split(b"\0")[:-2]:
        kind, text = record[:1], os.fsdecode(record[1:])
        if kind == b"f":
            names.append(text)
        elif kind == b"a":
            added.append(text)
        elif kind == b"e":
            name, _, value = text.partition("=")
            environment[name] = value
        elif kind == b"x":
            emulator = text
        else:
            raise ValueError(record)
    numbers = dict(zip(names, fds, strict=True))
    return emulator, [substitute(argument, numbers) for argument in added]


def ask(path: str, vm: str, token: str) -> tuple[bytes, list[int]]:
    """Show the token and receive the answer, up to the end of the stream.

    Returns:
        The answer, and the descriptors that came with it, which the emulator will inherit.
    """
    # The module `socket` on top of it costs a third of the wrapper's time.
    import _socket
    import array

    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT)
    try:
        connection.connect(path)
        connection.sendall(f"{vm}\0{token}\0".encode())
    except OSError as error:
        raise Failure(
            EXIT_NO_SERVER,
            f"cannot reach the manager at {path} ({error.strerror or error}): VMs start only "
            "while it runs",
        ) from None
    chunks = []
    fds = array.array("i")
    room = _socket.CMSG_LEN(MOST_FDS * fds.itemsize)
    try:
        while True:
            chunk, ancillary, _, _ = connection.recvmsg(65536, room)
            for level, kind, data in ancillary:
                if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
                    fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            if not chunk:
                break
            chunks.append(chunk)
    except OSError:
        pass  # what came so far is not whole, which its end tells
    connection.close()
    return b"".join(chunks), list(fds)


def substitute(argument: str, numbers: dict[str, int]) -> str:
    """Put descriptors' numbers for their names, written {fd:NAME}."""
    pieces = argument.split("{fd:")
    for position in range(1, len(pieces)):
        name, brace, rest = pieces[position].partition("}")
        if not brace:
            raise ValueError(argument)
        pieces[position] = f"{numbers[name]}{rest}"
    return "".join(pieces)


def drop_lent_capabilities() -> None:
    """Let a capability probe see the host as a guest's emulator will see it.

    libvirt probes QEMU with CAP_DAC_OVERRIDE added. Where the emulator's user may not open
    /dev/kvm, the probe then finds KVM usable, libvirt finds that it is not, and probes again for
    every look at the capabilities, dozens of times per domain.
    """
    import ctypes

    pr_cap_ambient, clear_all = 47, 4  # <linux/prctl.h>
    ctypes.CDLL(None).prctl(pr_cap_ambient, clear_all, 0, 0, 0)


def execute(emulator: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Become the emulator; returns never."""
    try:
        os.execve(emulator, [emulator, *arguments], environment)
    except OSError as error:
        raise Failure(
            EXIT_EXEC, f"cannot execute {emulator}: {error.strerror}: check the setting `emulator`"
        ) from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
