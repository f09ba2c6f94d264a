"""Files of the node that guests get as they are: ConfigMaps, Secrets, tokens, single files.

They are read at a bounded cost. A kubelet replaces all files of such a volume in one step, as their
directory's link `..data` leads to the directory of a version.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from attrs import evolve, field, frozen

from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from virtlet.model.disk import GuestFiles

DATA = "..data"
"""The link of a kubelet's volume that leads to the directory of its version."""
MAX_FILE = 1 << 20
"""Bytes of one file; a ConfigMap or Secret cannot hold more."""
MAX_TOTAL = 8 << 20
"""Bytes of all files of one VM."""
MAX_FILES = 1000
"""Files of one VM."""


@frozen
class GuestFile:
    """A file as the guest gets it."""

    path: str
    content: bytes = field(repr=False)
    mode: int
    uid: int = 0
    gid: int = 0


def read_all(volumes: Iterable[GuestFiles]) -> list[GuestFile]:
    """Every file of the volumes, in order.

    Raises:
        FailedPrecondition: the path of a volume does not exist.
        InvalidArgument: a file is not a regular file, or its name is not UTF-8.
        ResourceExhausted: too many or too large files.
        Unavailable: the files changed while they were read.
    """
    files: list[GuestFile] = []
    total = 0
    for volume in volumes:
        for path, source in _sources(volume):
            file = _read(source, path)
            if volume.mode is not None:
                file = evolve(file, mode=volume.mode, uid=0, gid=0)
            files.append(file)
            total += len(file.content)
            if len(files) > MAX_FILES or total > MAX_TOTAL:
                raise ResourceExhausted(
                    f"mount {volume.guest_path}: the pod's ConfigMaps, Secrets and other files "
                    f"are more than {MAX_FILES} files or {MAX_TOTAL >> 20} MiB: use a volume"
                )
    return files


def _sources(volume: GuestFiles) -> Iterator[tuple[str, Path]]:
    """(guest path, real path on the node) of each file."""
    if not volume.host_path.is_dir():
        # A hostPath volume may be a link itself, as /etc/localtime is.
        yield volume.guest_path, Path(os.path.realpath(volume.host_path))
        return
    # The kubelet replaces the target of `..data` in one step; it is resolved once, so that all
    # files are of one version.
    current = volume.host_path / DATA
    top = Path(os.path.realpath(current if current.is_dir() else volume.host_path))
    for directory, directories, names in os.walk(top, onerror=_vanished):
        directories.sort()
        for name in sorted(names):
            path = Path(directory, name)
            try:
                inside = str(path.relative_to(top))
                inside.encode()
            except UnicodeEncodeError:
                raise InvalidArgument(
                    f"mount {volume.guest_path}: a file's name is not UTF-8"
                ) from None
            yield str(PurePosixPath(volume.guest_path, inside)), path


def _vanished(error: OSError) -> None:
    raise Unavailable(f"{error.filename} changed while it was read: try again") from None


def _read(source: Path, guest_path: str) -> GuestFile:
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(
            f"mount {guest_path}: {source} on the node: {error.strerror}"
        ) from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidArgument(f"mount {guest_path}: {source} on the node is not a regular file")
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise ResourceExhausted(
            f"mount {guest_path}: {source} has more than {MAX_FILE >> 20} MiB, the most that "
            "cloud-init is given as a file: use a volume"
        )
    # A copy gets no set-user-id bit.
    return GuestFile(guest_path, content, status.st_mode & 0o777, status.st_uid, status.st_gid)
