"""Image volumes: container images as read-only disks with a file system, and CDs as they are.

What an image is made into is in the plugin that fetched it; here it is known by its format.
"""

import os
import re

from virtlet.errors import FailedPrecondition
from virtlet.host.commands import CommandLimits, run
from virtlet.host.confinement import NOBODY, Confinement
from virtlet.model.disk import Disk
from virtlet.model.image import Image, shown_name
from virtlet.model.vm import Mount, VolumeRequest

FORMATS = ("squashfs",)
"""Of images that guests mount, in their kernels' words."""
OPTIONS = ("nodev", "nosuid", "noexec")
"""As Kubernetes promises of image volumes: nothing in them is executed where they are mounted."""
_CD_OFFSET = 16 * 2048 + 1
"""Of the first volume descriptor's identifier (ECMA-119, 8.1.2)."""
_LIMITS = CommandLimits(cpu_seconds=60, memory=1 << 30, output=1 << 20)
_TIMEOUT = 120.0
_LINE = re.compile(rb"(.)\S{9} .*? squashfs-root(?:/(.*))?")


def serve_image(mount: Mount, request: VolumeRequest) -> Disk:
    """The disk that an image volume becomes.

    Raises:
        FailedPrecondition: the image is a disk of a machine, or has no such directory.
    """
    image = request.image
    assert image is not None
    name = shown_name(mount.user_image or mount.image)
    if image.format == "raw" and not mount.image_sub_path and _is_cd(image):
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
