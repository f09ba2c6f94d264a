"""Why a directory of the node cannot be read, and what to do about it."""

import os
import pwd
import stat
from pathlib import Path


def reason(directory: Path, error: OSError, content: str, flag: str) -> str:
    """Say what stands in the way, from the directory's first parent on.

    Args:
        directory: as it is configured.
        error: what reading it failed with.
        content: what is to be installed there.
        flag: that of the setting that names it.
    """
    match error:
        case FileNotFoundError():
            return f"it does not exist: install {content}, or name another one with {flag}"
        case NotADirectoryError():
            return f"it is no directory: name another one with {flag}"
        case PermissionError():
            return f"{_closed(directory)}, or name another one with {flag}"
    return f"{error.strerror}: mend it, or name another one with {flag}"


def _closed(directory: Path) -> str:
    directory = Path(os.path.realpath(directory))
    for path in (*reversed(directory.parents), directory):
        needed = os.R_OK | os.X_OK if path == directory else os.X_OK
        if not os.access(path, needed, effective_ids=True):
            return (
                f"permission denied to {_user(os.geteuid())} at {path}{_mode(path)}: let it enter "
                "and read there (a service with ProtectHome= sees nothing of /root and /home)"
            )
    return "permission denied: see the node's security module (AppArmor, SELinux), let it read"


def _mode(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return ""
    return f" ({stat.filemode(status.st_mode)}, of {_user(status.st_uid)})"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
