"""Processes that outlive us, followed without mistaking one for another."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path


def open_process(pid: int, argument: str) -> int | None:
    """A pidfd of the process, if it was started with this argument.

    The argument is read after the pidfd is open. So a process id that was given to another
    program meanwhile is never taken for the one that is meant.

    Returns:
        A descriptor that the caller owns and that becomes readable when the process ends, or
        None when there is no such process.
    """
    return _open(pid, lambda: os.fsencode(argument) in arguments(pid))


def open_started(pid: int, matches: Callable[[Collection[bytes]], bool]) -> int | None:
    """A pidfd of the process, if it was started in such an environment; see `open_process`.

    Args:
        pid: its id.
        matches: looks at the `NAME=value`s of a process.
    """
    return _open(pid, lambda: matches(environment(pid)))


def jail_of(pid: int) -> str | None:
    """The user namespace of a process, which a jailed one shares with all that it has started and
    with nobody else.

    Returns:
        None if it is ours, or the process has ended.
    """
    jail = _namespace(pid)
    return None if jail == _namespace("self") else jail


def _namespace(pid: int | str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return None


def open_all_in(jail: str) -> list[int]:
    """Pidfds of all processes in a jail, which the caller owns; others may come meanwhile."""

    def open_one(pid: int) -> int | None:
        return _open(pid, lambda: _namespace(pid) == jail)

    return [pidfd for name in _pids() if (pidfd := open_one(int(name))) is not None]


def _pids() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdecimal()]


def environment(pid: int) -> Collection[bytes]:
    """The `NAME=value`s that a process was started with; nothing when it has ended."""
    return frozenset(_strings(pid, "environ"))


def arguments(pid: int) -> Sequence[bytes]:
    """What a process was started with; nothing when it has ended."""
    return _strings(pid, "cmdline")


def children(pid: int) -> Sequence[int]:
    """Processes that a process has started; none when it has ended."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found


def holds_root_twice(pid: int) -> bool:
    """Whether a process has two descriptors of the root of one mount that only it sees.

    Looks at nothing but /proc: no file system that does not answer holds it up.
    """
    seen = set()
    directory = Path(f"/proc/{pid}")
    with contextlib.suppress(OSError):
        for name in os.listdir(directory / "fd"):
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(directory / "fd" / name) != "/":
                    continue
                lines = (directory / "fdinfo" / name).read_text().splitlines()
                mount = next((line for line in lines if line.startswith("mnt_id:")), "")
                if mount in seen:
                    return True
                seen.add(mount)
    return False


def sessions() -> Mapping[int, Collection[int]]:
    """Ids of all processes by their session.

    A session has the id of the process that began it, and no other process gets that number as
    long as one is in the session.
    """
    found: dict[int, list[int]] = {}
    for name in _pids():
        with contextlib.suppress(OSError):
            found.setdefault(os.getsid(int(name)), []).append(int(name))
    return found


def _open(pid: int, is_meant: Callable[[], bool]) -> int | None:
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    if not is_meant():
        os.close(descriptor)
        return None
    return descriptor


def _strings(pid: int, file: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/{file}", "rb") as opened:
            # A process may say that its arguments are all of its memory.
            return opened.read(_MOST).split(b"\0")
    except OSError:
        return []


_MOST = 2 << 20
"""Bytes read of a process's arguments or variables."""


HELPER_OOM_SCORE = 0
"""oom_score_adj of programs that work for pods. They would inherit the manager's, which a node's
configuration makes low, and be spared where a pod's own processes are not."""


def set_oom_score_adj(pid: int, value: int) -> bool:
    """Make the kernel's OOM killer prefer or spare a process; -1000 to 1000.

    Returns:
        False where that is not possible: the process has ended, or a lower value than it had
        needs CAP_SYS_RESOURCE, which not every node gives.
    """
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(value))
    except OSError:
        return False
    return True


def ended(pidfd: int, *, within: float = 0.0) -> bool:
    """Whether a process has ended, or does so within some seconds."""
    poll = select.poll()  # select() cannot take descriptors from 1024 on
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(within * 1000))


def end_process(pidfd: int, *, grace: float) -> None:
    """End a process: SIGTERM, and SIGKILL if it is still there after `grace` seconds."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if ended(pidfd, within=patience):
            reap(pidfd)
            return


def kill(pidfds: Collection[int], *, within: float) -> bool:
    """Kill processes.

    Returns:
        Whether all have ended within some seconds; one that waits for a disk may not.
    """
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    end = time.monotonic() + within
    return all(ended(pidfd, within=max(end - time.monotonic(), 0.0)) for pidfd in pidfds)


def kill_all_in(jail: str, *, within: float) -> None:
    """Kill what is in a jail, again and again while that starts more.

    Args:
        jail: of `jail_of`.
        within: seconds for each time.
    """
    for _ in range(_ROUNDS):
        pidfds = open_all_in(jail)
        if not pidfds:
            return
        try:
            kill(pidfds, within=within)
            for pidfd in pidfds:
                reap(pidfd)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)


_ROUNDS = 20
"""Times that processes are killed, while they start others."""


def reap(pidfd: int) -> None:
    """Let the kernel forget a process that has ended, where it is a child of ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
