"""The manager's places on the node: made, checked and locked at start."""

import fcntl
import os
import pwd
from pathlib import Path
from typing import TextIO

from virtlet.core.config.options import DATA_DIR, EMULATOR_USER
from virtlet.errors import FailedPrecondition
from virtlet.host.files import make_private_directory
from virtlet.model.option import Settings
from virtlet.model.plain import quote

LONGEST_SOCKET = 107
"""Bytes of a unix socket's path (sun_path of unix(7), less the final NUL)."""
_LONGEST_BELOW = len("/run/vm/0123456789ab/agent.sock")


def prepare(config: Settings) -> tuple[Path, Path]:
    """Make the data and run directories.

    Returns:
        Data and run directory.

    Raises:
        FailedPrecondition: they cannot be made, or their path is too long for our sockets.
    """
    data_dir = config[DATA_DIR]
    room = LONGEST_SOCKET - _LONGEST_BELOW
    if len(os.fsencode(data_dir)) > room:
        raise FailedPrecondition(
            f"--data-dir {data_dir} is too long for the unix sockets below it: use a path of at "
            f"most {room} bytes"
        )
    run_dir = data_dir / "run"
    try:
        # The emulator's user passes through to its VM's directory and reads none of these.
        for path in (data_dir, run_dir, run_dir / "vm", data_dir / "volumes"):
            make_private_directory(path, mode=0o711)
        make_private_directory(data_dir / "pods")
    except OSError as error:
        raise FailedPrecondition(f"--data-dir {data_dir}: {error}") from None
    return data_dir, run_dir


def lock(directory: Path, flag: str) -> TextIO:
    """Make sure that no other manager works on a directory.

    Args:
        directory: it exists.
        flag: the setting that names it.

    Returns:
        The lock's file; the lock is held as long as it is open.

    Raises:
        FailedPrecondition: another manager holds it.
    """
    file = (directory / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise FailedPrecondition(
            f"another manager works on {directory}: stop it, or use another {flag}"
        ) from None
    return file


def emulator_user(config: Settings) -> tuple[int, int]:
    """User and group id that the emulator runs as.

    Raises:
        FailedPrecondition: the configured user, not the default one, does not exist.
    """
    name = config[EMULATOR_USER]
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        if name == EMULATOR_USER.default:
            return 0, 0
        raise FailedPrecondition(
            f"{EMULATOR_USER.flag} {quote(name)}: there is no such user on this node: create it or "
            "name another"
        ) from None
    return entry.pw_uid, entry.pw_gid
