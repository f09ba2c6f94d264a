"""Putting vmwrapper where the emulator's user can read and execute it."""

import grp
import importlib.resources
import pwd
import stat
import sys
from pathlib import Path

from virtlet.errors import FailedPrecondition
from virtlet.host.files import write_atomically

_CLOSED = "choose another --data-dir, or open the directories"
_EMULATOR_LINE = 'EMULATOR = "/usr/bin/qemu-system-x86_64"\n'
_USER_LINE = 'USER: "tuple[int, int, tuple[int, ...]]" = (0, 0, ())\n'
"""Lines of vmwrapper's source that the emulator's path and its user are put into."""


def install_wrapper(wrapper: Path, emulator: Path, uid: int, gid: int) -> Path:
    """Install vmwrapper for one emulator; does nothing when it is in place already.

    A hypervisor may keep what it learned of an emulator until the file changes. So the file is
    written only when it would differ, and names the real emulator's size and time, so that it
    differs after an upgrade of the emulator.

    Args:
        wrapper: the file, in a directory of its own.
        emulator: the real one; see `emulator_problem` for one that is not there.
        uid: user that will execute it.
        gid: its group.

    Returns:
        The file.

    Raises:
        FailedPrecondition: the user cannot execute it, or any Python interpreter.
    """
    groups = _groups(uid, gid)
    text = _text(_interpreter(uid, groups), emulator, (uid, gid, tuple(sorted(groups))))
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    wrapper.parent.chmod(0o755)
    if not wrapper.is_file() or wrapper.read_bytes() != text or _mode(wrapper) != 0o755:
        write_atomically(wrapper, text, mode=0o755)
    problem = _problem(wrapper, uid, groups, _CLOSED)
    if problem:
        raise FailedPrecondition(problem)
    return wrapper


def wrapper_problem(directory: Path, uid: int, gid: int) -> str:
    """Why a user could not execute a vmwrapper below a directory, with the remedy; "" when it can.

    Args:
        directory: one that is there, and would have the wrapper's below it.
        uid: user that would execute it.
        gid: its group.
    """
    groups = _groups(uid, gid)
    try:
        _interpreter(uid, groups)
    except FailedPrecondition as error:
        return str(error)
    return _problem(directory, uid, groups, _CLOSED)


def emulator_problem(emulator: Path, uid: int, gid: int) -> str:
    """Why a user cannot run the emulator, with the remedy; "" when it can."""
    try:
        emulator.stat()
    except OSError as error:
        return (
            f"emulator {emulator}: {error.strerror}: install QEMU (package qemu-system-x86) or set "
            "`emulator`, then restart the manager"
        )
    return _problem(emulator, uid, _groups(uid, gid), "set `emulator` to one it can")


def _text(interpreter: Path, emulator: Path, user: tuple[int, int, tuple[int, ...]]) -> bytes:
    source = (importlib.resources.files("vmwrapper") / "__main__.py").read_text()
    for line, value in ((_EMULATOR_LINE, str(emulator)), (_USER_LINE, user)):
        before, found, after = source.partition(line)
        if not found:
            raise FailedPrecondition(
                "vmwrapper/__main__.py has no line for the emulator or its user: install Virtlet "
                "again"
            )
        name = line.partition(" = ")[0]
        source = f"{before}{name} = {value!r}\n{after}"
    try:
        status = emulator.stat()
        identity = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        identity = "not there"
    # -I and -S: neither the user's environment nor installed packages get in, and it starts
    # in half the time.
    return (
        f"#!{interpreter} -IS\n"
        f"# Written by Virtlet. The emulator's size and time: {identity}\n"
        f"{source}"
    ).encode()


def _interpreter(uid: int, groups: frozenset[int]) -> Path:
    for candidate in (Path("/usr/bin/python3"), Path(sys.executable)):
        if candidate.exists() and _obstacle(candidate.resolve(), uid, groups) is None:
            return candidate
    raise FailedPrecondition(
        f"the emulator's user (uid {uid}) can execute neither /usr/bin/python3 nor "
        f"{sys.executable}: install Debian's python3, or run Virtlet with an interpreter outside "
        "of root's home"
    )


def _problem(path: Path, uid: int, groups: frozenset[int], remedy: str) -> str:
    obstacle = _obstacle(path.resolve(), uid, groups)
    if obstacle is None:
        return ""
    return (
        f"the emulator's user (uid {uid}) cannot execute {path}: {obstacle} is closed to it; "
        f"{remedy}"
    )


def _obstacle(path: Path, uid: int, groups: frozenset[int]) -> Path | None:
    """The file or directory on the way that a user may not execute or pass through."""
    if uid == 0:
        return None
    for step in (*reversed(path.parents), path):
        info = step.stat()
        if info.st_uid == uid:
            bit = stat.S_IXUSR
        elif info.st_gid in groups:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return step
    return None


def _groups(uid: int, gid: int) -> frozenset[int]:
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        return frozenset({gid})
    return frozenset({gid, *(entry.gr_gid for entry in grp.getgrall() if name in entry.gr_mem)})


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
