"""Image volumes: container images as read-only disks with a file system, and CDs as they are.

What an image is made into is in the plugin that fetched it; here it is known by its format.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path, PurePosixPath

from virtlet.errors import FailedPrecondition, ResourceExhausted
from virtlet.host.commands import CommandLimits, run, start
from virtlet.host.confinement import NOBODY, Confinement
from virtlet.host.files import remove_file
from virtlet.model.disk import Disk
from virtlet.model.flavor import FROM_IMAGE
from virtlet.model.image import Image, shown_name
from virtlet.model.vm import Mount, Vm, VolumeRequest, image_mount

FORMATS = ("squashfs",)
"""Of images that guests mount, in their kernels' words."""
OPTIONS = ("nodev", "nosuid", "noexec")
"""As Kubernetes promises of image volumes: nothing in them is executed where they are mounted."""
_CD_OFFSET = 16 * 2048 + 1
"""Of the first volume descriptor's identifier (ECMA-119, 8.1.2)."""
_LIMITS = CommandLimits(cpu_seconds=60, memory=1 << 30, output=1 << 20)
_TIMEOUT = 120.0
BOOT_FILES = ("kernel", "initrd")
"""Keys of a flavor that may name a file of an image."""
_COPY_LIMITS = CommandLimits(cpu_seconds=60, memory=1 << 30, file_size=1 << 30)
_LEAST_FREE = 1 << 20
"""Bytes without which a copy failed for want of them."""
_LINE = re.compile(rb"(.)\S{9} .*? squashfs-root(?:/(.*))?")


def serve_image(vm: Vm, mount: Mount, request: VolumeRequest) -> Disk:
    """The disk that an image volume becomes, with copies of what the machine boots by in it.

    Raises:
        FailedPrecondition: the image is a disk of a machine, or has no such directory or file.
        ResourceExhausted: there is no space for the copies.
    """
    image = request.image
    assert image is not None
    name = shown_name(mount.user_image or mount.image)
    if image.format == "raw" and not mount.image_sub_path and _is_cd(image):
        for key in BOOT_FILES:
            if _inside(vm, mount, key):
                raise FailedPrecondition(
                    f"{key} {vm.pod.profile.flavor[key]} of its flavor: image {name} is a CD, and "
                    "a machine boots by files of container images: correct the flavor or the mount"
                )
        return Disk(
            path=image.path,
            format="raw",
            readonly=True,
            kind="cdrom",
            serial=request.role,
            guest_path=mount.guest_path,
        )
    if image.format not in FORMATS:
        raise FailedPrecondition(
            f"mount {mount.guest_path}: image {name} is a disk of a machine ({image.format}), and "
            "has no files that could be mounted: name a container image, or one of a CD, in the "
            "volume of kind `image`"
        )
    if mount.image_sub_path and not _has_directory(image, mount.image_sub_path):
        raise FailedPrecondition(
            f"mount {mount.guest_path}: image {name} has no directory {mount.image_sub_path!r}: "
            "correct the subPath; it may not go through a link, or to a file"
        )
    return Disk(
        path=image.path,
        format="raw",
        readonly=True,
        serial=request.role,
        guest_path=mount.guest_path,
        filesystem=True,
        filesystem_type=image.format,
        mount_options=OPTIONS,
        sub_path=mount.image_sub_path,
        kernel=_boot_file(vm, mount, request, "kernel"),
        initrd=_boot_file(vm, mount, request, "initrd"),
    )


def release_image(vm: Vm, request: VolumeRequest) -> None:
    """Remove the copies. Idempotent."""
    for key in BOOT_FILES:
        remove_file(_copy(vm, request, key))


def _copy(vm: Vm, request: VolumeRequest, key: str) -> Path:
    return vm.directory / f"{request.role}.{key}"


def _inside(vm: Vm, mount: Mount, key: str) -> str:
    """Where in the image of this mount a file is that the flavor names; "" if it is not there."""
    place = str(vm.pod.profile.flavor.get(key, ""))
    path = place.removeprefix(FROM_IMAGE)
    if path == place or image_mount(vm.config.mounts, path) != mount:
        return ""
    return str(
        PurePosixPath(mount.image_sub_path) / PurePosixPath(path).relative_to(mount.guest_path)
    )


def _boot_file(vm: Vm, mount: Mount, request: VolumeRequest, key: str) -> Path | None:
    """A copy of the file that the flavor names below this mount, for the emulator to read."""
    inside = _inside(vm, mount, key)
    if not inside:
        return None
    copy = _copy(vm, request, key)
    what = f"{key} {vm.pod.profile.flavor[key]} of its flavor"
    _take_out(request, inside, copy, what, mount)
    return copy


def _take_out(request: VolumeRequest, inside: str, target: Path, what: str, mount: Mount) -> None:
    """Have a program write a file of an image, which anybody may have made, into a new file.

    Links lead to what they name within the image, and nowhere else.
    """
    assert request.image is not None
    remove_file(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with request.image.path.open("rb") as image, open(os.open(target, flags, 0o444), "wb") as file:
        process = start(
            ["unsquashfs", "-quiet", "-no-wildcards", "-cat", "/proc/self/fd/0", inside],
            stdin=image.fileno(),
            stdout=file.fileno(),
            limits=_COPY_LIMITS,
            confinement=Confinement(uid=NOBODY, gid=NOBODY, network=False),
            package="squashfs-tools",
        )
        try:
            status = process.wait(_TIMEOUT)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
        os.fchmod(file.fileno(), 0o444)
        if status == 0 and os.fstat(file.fileno()).st_size:
            return
    full = shutil.disk_usage(target.parent).free < _LEAST_FREE
    remove_file(target)
    if full:
        raise ResourceExhausted(f"{what}: no space for a copy of it in {target.parent}")
    raise FailedPrecondition(
        f"{what}: image {shown_name(mount.user_image or mount.image)} has no file {inside!r} of at "
        f"most {_COPY_LIMITS.file_size >> 20}Mi: correct the flavor or the image"
    )


def _is_cd(image: Image) -> bool:
    """Whether it is an image of a CD: drivers for Windows, as a rule."""
    with image.path.open("rb") as file:
        return os.pread(file.fileno(), 5, _CD_OFFSET) == b"CD001"


def _has_directory(image: Image, path: str) -> bool:
    """Ask a program that has nothing but the file, which anybody may have made."""
    with image.path.open("rb") as file:
        # Down to it, and not to what is in it.
        depth = str(path.count("/") + 1)
        options = ("-quiet", "-no-wildcards", "-max-depth", depth, "-lln")
        listed = run(
            ["unsquashfs", *options, f"/proc/self/fd/{file.fileno()}", path],
            pass_fds=(file.fileno(),),
            quiet=True,
            timeout=_TIMEOUT,
            limits=_LIMITS,
            confinement=Confinement(uid=NOBODY, gid=NOBODY, network=False),
            package="squashfs-tools",
        )
    wanted = path.encode(errors="surrogateescape")
    found = (_LINE.fullmatch(line) for line in listed.splitlines())
    return any(match and match[1] == b"d" and match[2] == wanted for match in found)
