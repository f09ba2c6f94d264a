"""What callers are told when a console or its log cannot be made."""

import errno

from virtlet.core.console.crilog import CriLog
from virtlet.core.console.files import ConsoleFiles
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable, VirtletError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOG = (
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,  # an ancestor is a file
    errno.EINVAL,  # not an ordinary file
    errno.ENXIO,  # a socket
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
"""What a path meets that will be no log however often it is tried."""


def refuse_what_is_no_log(files: ConsoleFiles) -> None:
    """See that the log's path may be written one day; other trouble, as a full disk, may pass.

    Raises:
        FailedPrecondition: what is at the path, or above it, can be no log.
    """
    if files.log is None:
        return
    try:
        CriLog.probe(files.log)
    except OSError as error:
        if error.errno in _NO_LOG:
            raise FailedPrecondition(
                f"the console of VM {files.vm_id} cannot be logged to {files.log}: {error}; a log "
                "is an ordinary file in a directory: clear the path, or ask for another log_path"
            ) from error


def refusal(what: str, error: OSError) -> VirtletError:
    """The error for something on disk that failed; retrying helps once the disk is right."""
    if error.errno in _FULL:
        return ResourceExhausted(f"{what}: {error}; free some disk space")
    return Unavailable(f"{what}: {error}; see that the directory is there and writable")
