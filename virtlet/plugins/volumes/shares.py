"""Shared directories, where the emulator's user reaches them.

A kubelet keeps its pods' volumes in directories that root alone can pass, and so may anybody else.
Each VM gets the directory at a place of its own, below its private directory, where the owner and
mode of the directory itself decide who may do what in it.
"""

import os
from pathlib import Path

from attrs import evolve

from virtlet.errors import FailedPrecondition
from virtlet.host import mounts
from virtlet.model.disk import Share
from virtlet.model.vm import Mount

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def bring_near(share: Share, mount: Mount, directory: Path, data_dir: Path) -> Share:
    """Have a shared directory appear below a VM's directory, under the share's tag.

    Args:
        share: the directory where it is.
        mount: what the pod mounts.
        directory: the VM's.
        data_dir: the manager's. A share that holds it comes without what is mounted inside, as
            that would hold the shares of every other VM.

    Raises:
        FailedPrecondition: it cannot be had there.
    """
    near = directory / share.tag
    opened: list[int] = []
    try:
        opened.append(_open(share.host_path, share))
        # Its directory belongs to the emulator's user, who may put a link in its place.
        opened.append(os.open(directory, _DIRECTORY | os.O_NOFOLLOW))
        os.mkdir(share.tag, 0o700, dir_fd=opened[1])
        opened.append(os.open(share.tag, _DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[1]))
        mounts.bind(
            opened[0],
            opened[2],
            readonly=share.readonly,
            follow=mount.propagation > 0,
            inner=not data_dir.resolve().is_relative_to(share.host_path.resolve()),
        )
    except OSError as error:
        raise FailedPrecondition(
            f"mount {share.guest_path}: {share.host_path} cannot be mounted at {near} as well "
            f"({error.strerror}): the manager has to be root, on Linux 5.12 or newer"
        ) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return evolve(share, host_path=near)


def _open(path: Path, share: Share) -> int:
    try:
        return os.open(path, _DIRECTORY)
    except OSError as error:
        raise FailedPrecondition(
            f"mount {share.guest_path}: {path} on the node: {error.strerror}"
        ) from None
