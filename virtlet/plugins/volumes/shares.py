"""Shared directories, mounted where the emulator's user reaches them.

A kubelet keeps its pods' volumes in directories that only root can pass. So a shared directory is
mounted below the private directory of the VM, where its own owner and mode decide about access.
"""

import contextlib
import errno
import os
import pwd
import stat
from collections.abc import Iterable
from pathlib import Path

from attrs import evolve

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.host import mounts
from virtlet.model.disk import Share
from virtlet.model.node import Node
from virtlet.model.option import TRUE_ONLY, Annotation
from virtlet.model.vm import Mount

CHOWN_MOUNTS = Annotation(
    name="VirtletChown9pfsMounts",
    kind=TRUE_ONLY,
    default=False,
    help="With 9p, give shared volumes, and all in them, to the emulator's user so that the guest "
    "can write there; never done to a hostPath volume",
)

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def give_away(directory: Path, uid: int, gid: int) -> None:
    """Make a directory and all in it belong to a user; links are not followed.

    Files that vanish meanwhile are passed over.

    Raises:
        FailedPrecondition: an owner cannot be changed.
    """
    try:
        os.chown(directory, uid, gid)
        for _, directories, files, descriptor in os.fwalk(directory, follow_symlinks=False):
            for name in (*directories, *files):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
    except OSError as error:
        raise FailedPrecondition(
            f"{directory} cannot be given to the emulator's user ({error.strerror}): take the "
            "annotation VirtletChown9pfsMounts away, or use a volume that knows owners"
        ) from None


def bring_near(share: Share, mount: Mount, directory: Path, node: Node) -> Share:
    """Mount a shared directory below a VM's directory, under the share's tag.

    Args:
        share: the directory where the pod has it.
        mount: what the pod mounts.
        directory: of the VM.
        node: has the data directory. A share that holds it comes without what is mounted inside,
            now or later, as that would include the shares of all other VMs.

    Raises:
        InvalidArgument: it is the data directory, or lies in it.
        FailedPrecondition: it cannot be mounted, or the emulator's user cannot read it.
    """
    near = directory / share.tag
    opened: list[int] = []
    try:
        opened.append(_open(share.host_path, share))
        holds_ours = _holds_ours(opened[0], share, node.data_dir)
        if share.driver == "9p":
            _check_open(opened[0], share, node)
        # Its directory belongs to the emulator's user, who may put a link in its place.
        opened.append(os.open(directory, _DIRECTORY | os.O_NOFOLLOW))
        os.mkdir(share.tag, 0o700, dir_fd=opened[1])
        opened.append(os.open(share.tag, _DIRECTORY | os.O_NOFOLLOW, dir_fd=opened[1]))
        mounts.bind(
            opened[0],
            opened[2],
            readonly=share.readonly,
            follow=mount.propagation > 0,
            inner=not holds_ours,
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


def _holds_ours(source: int, share: Share, data_dir: Path) -> bool:
    """Whether a directory holds the data directory, also under another name.

    Raises:
        InvalidArgument: it is the data directory, or lies in it.
    """
    real, ours = Path(os.readlink(f"/proc/self/fd/{source}")), data_dir.resolve()
    if _has_same((real, *real.parents), ours.stat()):
        raise InvalidArgument(
            f"mount {share.guest_path}: {share.host_path} lies in Virtlet's data directory "
            f"{data_dir}, which no VM shares: mount a directory outside it"
        )
    return _has_same(ours.parents, os.stat(source))


def _has_same(paths: Iterable[Path], wanted: os.stat_result) -> bool:
    return any(path.exists() and os.path.samestat(path.stat(), wanted) for path in paths)


def _check_open(source: int, share: Share, node: Node) -> None:
    """Refuse a directory that the emulator's user, who serves 9p, cannot read: QEMU does not start.

    A directory with an access control list is left to QEMU.
    """
    status = os.stat(source)
    uid, gid = node.emulator_uid, node.emulator_gid
    if uid == status.st_uid:
        needed = stat.S_IRUSR | stat.S_IXUSR
    elif status.st_gid in _groups(uid, gid):
        needed = stat.S_IRGRP | stat.S_IXGRP
    else:
        needed = stat.S_IROTH | stat.S_IXOTH
    if uid == 0 or status.st_mode & needed == needed or _has_list(source):
        return
    raise FailedPrecondition(
        f"mount {share.guest_path}: {share.host_path} on the node is closed to the emulator's user "
        f"(uid {uid}, gid {gid}): it has mode {stat.S_IMODE(status.st_mode):04o} and belongs to "
        f"{status.st_uid}:{status.st_gid}. Let that user read and search it (chown, chmod); for a "
        f"writable volume of the pod's own, annotation {CHOWN_MOUNTS.name} does so; virtiofs needs "
        "none of this (annotation VirtletShareDriver)"
    )


def _groups(uid: int, gid: int) -> set[int]:
    """Groups that libvirt gives an emulator: also the supplementary ones of its user."""
    try:
        return {gid, *os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)}
    except KeyError:
        return {gid}


def _has_list(source: int) -> bool:
    try:
        os.getxattr(f"/proc/self/fd/{source}", "system.posix_acl_access")
    except OSError as error:
        return error.errno not in (errno.ENODATA, errno.EOPNOTSUPP)
    return True
