"""Disks of a file with a file system, made for a VM or for an emptyDir.

The file is raw and sparse: it takes what the guest has written, and never more than its size. The
file system is made in it without a mount, by a process that has nothing but the file.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from virtlet.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from virtlet.host import mounts
from virtlet.host.commands import CommandError, CommandLimits, find_program, run
from virtlet.host.confinement import Confinement
from virtlet.host.files import new_disk_file
from virtlet.model.disk import Disk
from virtlet.model.node import Node
from virtlet.model.option import MAPPING, Annotation, Kind
from virtlet.model.quantity import parse_bytes
from virtlet.model.vm import Mount, Vm, VmConfig

EMPTY_DIR_PLUGIN = "kubernetes.io~empty-dir"
FILE_NAME = "disk.img"
"""Of an emptyDir's disk, in the emptyDir."""
LEAST, MOST = 16 << 20, 16 << 40
"""Bytes of a disk; ext4 does with less, and no node has more."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_LIMITS = CommandLimits(cpu_seconds=120, memory=1 << 30, output=1 << 20)
_TIMEOUT = 300.0


def check_size(size: int) -> int:
    """The size of a disk, if it can be one.

    Raises:
        ValueError: it is too small or too large.
    """
    if not LEAST <= size <= MOST:
        raise ValueError(f"{size} bytes is not between 16Mi and 16Ti")
    return size


def _sizes(text: str) -> Mapping[str, int]:
    found: Mapping[str, Any] = MAPPING.parse(text)
    sizes = {}
    for name, value in found.items():
        if not isinstance(name, str) or isinstance(value, bool | float | None | list | dict):
            raise ValueError("must map names of emptyDirs to sizes, as in `cache: 10Gi`")
        try:
            sizes[name] = check_size(parse_bytes(str(value)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return sizes


EMPTY_DIR_DISKS: Annotation[Mapping[str, int]] = Annotation(
    name="VirtletEmptyDirDisks",
    kind=Kind(name="YAML mapping of emptyDirs to sizes", parse=_sizes),
    default={},
    help="EmptyDirs that are disks with a file system instead of shared directories, as in "
    "`cache: 10Gi`; they are faster, and only the guest sees what is in them",
)


def empty_dir(mount: Mount, root: Path, pod_uid: str) -> str:
    """The name of the emptyDir that is mounted as a whole; "" where something else is."""
    try:
        inside = PurePosixPath(mount.host_path).relative_to(root / pod_uid).parts
    except ValueError:
        return ""
    match inside:
        case ("volumes", plugin, name) if plugin == EMPTY_DIR_PLUGIN and name != "..":
            return name
        case _:
            return ""


def check_empty_dirs(sizes: Mapping[str, int], config: VmConfig, root: Path, pod_uid: str) -> None:
    """Refuse names of no emptyDir of the container, and what a disk cannot do.

    Raises:
        InvalidArgument: names the emptyDir.
    """
    mounted = [name for m in config.mounts if (name := empty_dir(m, root, pod_uid))]
    for name in sizes:
        if name not in mounted:
            raise InvalidArgument(
                f"annotation {EMPTY_DIR_DISKS.name}: container {config.metadata.name} mounts no "
                f"emptyDir {name!r} as a whole (subPath is not had of a disk): mount it, or take "
                "it out"
            )
        if mounted.count(name) > 1:
            raise InvalidArgument(
                f"annotation {EMPTY_DIR_DISKS.name}: emptyDir {name!r} is mounted "
                f"{mounted.count(name)} times, and a disk is at one place: mount it once"
            )


def serve_empty_dir(vm: Vm, mount: Mount, role: str, size: int, node: Node) -> Disk:
    """An emptyDir as a disk, with what an earlier attempt left in it.

    The emptyDir is mounted below the VM's directory, as a shared one is.

    Raises:
        FailedPrecondition: the emptyDir is not there, or its disk is something else by now.
        ResourceExhausted: the node has no space for the file system.
    """
    near, (uid, gid) = vm.directory / role, node.user_of(vm)
    with contextlib.ExitStack() as opened:

        def open_(path: str | Path, flags: int, at: int | None = None) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC, dir_fd=at)
            opened.callback(os.close, descriptor)
            return descriptor

        try:
            source = open_(mount.host_path, _DIRECTORY)
            own = open_(vm.directory, _DIRECTORY | os.O_NOFOLLOW)
            os.mkdir(role, 0o700, dir_fd=own)
            target = open_(role, _DIRECTORY | os.O_NOFOLLOW, own)
            mounts.bind(source, target, readonly=False, follow=False, inner=False)
            bound = open_(near, _DIRECTORY | os.O_NOFOLLOW)
            try:
                disk = open_(FILE_NAME, os.O_RDWR | os.O_NOFOLLOW, bound)
            except FileNotFoundError:
                make_disk_file(near / FILE_NAME, size, uid, gid)
            else:
                _take_over(disk, uid, gid, mount)
        except OSError as error:
            raise FailedPrecondition(
                f"mount {mount.guest_path}: emptyDir {mount.host_path} cannot be a disk "
                f"({error.strerror})"
            ) from None
    return Disk(
        path=near / FILE_NAME,
        format="raw",
        readonly=mount.readonly,
        serial=role,
        guest_path=mount.guest_path,
        filesystem=True,
    )


def _take_over(disk: int, uid: int, gid: int, mount: Mount) -> None:
    """Give the disk of an earlier attempt to this VM's user."""
    found = os.fstat(disk)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        raise FailedPrecondition(
            f"mount {mount.guest_path}: {mount.host_path}/{FILE_NAME} is not the disk that was "
            "made there: make the pod again"
        )
    os.fchown(disk, uid, gid)
    os.fchmod(disk, 0o600)


def make_disk_file(path: Path, size: int, uid: int, gid: int) -> None:
    """Make a disk with an ext4 file system that every user of the guest can write; whole, or not
    at all.

    Args:
        path: of the file.
        size: in bytes.
        uid: user of the emulator.
        gid: its group.

    Raises:
        FailedPrecondition: mkfs.ext4 is not installed.
        ResourceExhausted: there is no space for it.
    """
    program = find_program("mkfs.ext4", "e2fsprogs")
    unfinished = path.with_name(f".{path.name}.new")
    try:
        with new_disk_file(unfinished, uid, gid) as descriptor:
            os.truncate(descriptor, size)
            options = "root_perms=0777,nodiscard,lazy_itable_init=1"
            try:
                run(
                    [program, "-q", "-F", "-m", "0", "-E", options, f"/proc/self/fd/{descriptor}"],
                    timeout=_TIMEOUT,
                    limits=_LIMITS,
                    confinement=Confinement(uid=uid, gid=gid, network=False),
                    pass_fds=(descriptor,),
                )
            except CommandError as error:
                raise ResourceExhausted(
                    f"{path}: no file system of {size} bytes could be made: {error}"
                ) from None
            os.fsync(descriptor)
            unfinished.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise ResourceExhausted(f"{path}: {error.strerror}") from None
        raise
