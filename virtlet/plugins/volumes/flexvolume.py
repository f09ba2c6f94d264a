"""Volumes of our FlexVolume driver (`virtlet/flexvolume_driver`) and CSI driver (`virtlet.cloud`).

The drivers, deploy/flexvolume/flexvolume_driver and `virtlet csi`, write the options of a volume to
a file in the volume's directory. Options with `kubernetes.io/` in them are the kubelet's own.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from virtlet.errors import FailedPrecondition, InvalidArgument
from virtlet.model.disk import Disk
from virtlet.model.node import Node
from virtlet.model.plain import quote
from virtlet.model.vm import Mount, Vm
from virtlet.plugins.volumes import ceph
from virtlet.plugins.volumes.new_disks import check_size, make_disk_file
from virtlet.plugins.volumes.pod_volumes import node_disk

OPTIONS_FILE = "virtlet-flexvolume.json"
CSI_DRIVER = "virtlet.cloud"
_LONGEST = 64 << 10
_DEFAULT_CAPACITY = "1024MB"
_CAPACITY = re.compile(r"\s*([0-9]{1,18})\s*(\S*)\s*", re.ASCII)
_UNITS = {"B": 1, "bytes": 1, "": 10**6}
for _power, _letter in enumerate("KMGTPE", 1):
    _UNITS |= {f"{_letter}B": 1000**_power, _letter: 1024**_power, f"{_letter}iB": 1024**_power}
    _UNITS[f"{_letter}i"] = 1024**_power
"""Units of Virtlet 1, which are those of libvirt's storage volumes (MB is 10^6, M and MiB are 2^20;
a number alone is of MB), and those of Kubernetes."""
_KNOWN = {"qcow2": {"capacity"}, "raw": {"path"}, "ceph": ceph.OPTIONS}
"""Types and their options."""


def serve_flexvolume(
    vm: Vm,
    mount: Mount,
    role: str,
    raw_devices: Sequence[str],
    monitors: ceph.Monitors,
    node: Node,
) -> Disk:
    """The disk that a volume asks for.

    Args:
        vm: which mounts it.
        mount: of the pod.
        role: name of the request; becomes the disk's serial number.
        raw_devices: globs of block devices that pods may have by their path.
        monitors: of Ceph clusters, those that pods may name.
        node: the node.

    Raises:
        InvalidArgument: an option is wrong; names it, and shows no value of one that is not known.
        FailedPrecondition: the driver did not write the options, or a device is not there.
        ResourceExhausted: the node has no space for the disk.
    """
    options, size = _checked(mount)
    if options["type"] == "ceph":
        ceph_image(mount, monitors)
        return ceph.disk_of(vm, mount, role)
    if options["type"] == "raw":
        return node_disk(mount, options["path"], role, raw_devices, filesystem=True)
    path = vm.directory / role
    make_disk_file(path, size, *node.user_of(vm))
    return Disk(
        path=path,
        format="raw",
        readonly=mount.readonly,
        serial=role,
        guest_path=mount.guest_path,
        filesystem=True,
    )


def ceph_image(mount: Mount, monitors: ceph.Monitors) -> ceph.RbdImage:
    """The image of a volume of type ceph, by the options that are there now.

    Raises:
        InvalidArgument: they are wrong, or name a monitor that pods may not name.
        FailedPrecondition: they are gone.
    """
    options, _ = _checked(mount)
    with _named(mount):
        image = ceph.parse(options)
        ceph.check_monitors(image, monitors)
    return image


def _checked(mount: Mount) -> tuple[Mapping[str, str], int]:
    with _named(mount):
        options = _options(mount)
        return options, check_options(options)


@contextmanager
def _named(mount: Mount) -> Iterator[None]:
    """Name the mount in what is wrong with its options."""
    try:
        yield
    except InvalidArgument as error:
        raise InvalidArgument(f"mount {mount.guest_path}: {error}") from None


def check_options(options: Mapping[str, str]) -> int:
    """Check the options of a volume.

    Returns:
        Bytes of the disk; 0 for what has its size already.

    Raises:
        InvalidArgument: an option is wrong; names it, and shows no value of one that is not known.
    """
    kind = options.get("type", "")
    if kind not in _KNOWN:
        raise InvalidArgument(
            f"volume: type {quote(kind)} is none of {', '.join(map(repr, _KNOWN))}"
        )
    for name in sorted(set(options) - _KNOWN[kind] - {"type"}):
        if "kubernetes.io/" not in name:
            raise InvalidArgument(
                f"volume: type {kind} has no option {name!r}; it has "
                f"{', '.join(sorted(_KNOWN[kind]))}"
            )
    if kind == "ceph":
        ceph.parse(options)
        return 0
    if kind == "raw":
        if not options.get("path", "").startswith("/"):
            raise InvalidArgument("volume: option path is not the absolute path of a device")
        return 0
    try:
        return capacity(options.get("capacity") or _DEFAULT_CAPACITY)
    except ValueError as error:
        raise InvalidArgument(f"volume: capacity: {error}") from None


def is_csi(mount: Mount, root: Path, pod_uid: str) -> bool:
    """Whether an inline volume of our CSI driver is mounted, by what its kubelet wrote beside it.

    Args:
        mount: of the pod.
        root: the kubelet's directory of pods.
        pod_uid: of the pod.
    """
    try:
        inside = PurePosixPath(mount.host_path).relative_to(root / pod_uid).parts
    except ValueError:
        return False
    match inside:
        case ("volumes", "kubernetes.io~csi", name, "mount") if name != "..":
            pass
        case _:
            return False
    try:
        said = json.loads((Path(mount.host_path).parent / "vol_data.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("driverName") == CSI_DRIVER


def capacity(text: str) -> int:
    """Bytes of a capacity as Virtlet 1 takes it.

    Raises:
        ValueError: it is none, or none that a disk can have.
    """
    match = _CAPACITY.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        raise ValueError(
            f"{quote(text)} is no size: write a number and a unit like 1024MB or 10GiB"
        )
    return check_size(int(match[1]) * _UNITS[match[2]])


def _options(mount: Mount) -> Mapping[str, str]:
    path = Path(mount.host_path) / OPTIONS_FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            text = file.read(_LONGEST + 1)
    except OSError as error:
        raise FailedPrecondition(
            f"mount {mount.guest_path}: {path}: {error.strerror}: is deploy/flexvolume's driver "
            "the one that the kubelet calls?"
        ) from None
    try:
        options = json.loads(text) if len(text) <= _LONGEST else None
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict) or not all(isinstance(v, str) for v in options.values()):
        raise InvalidArgument(f"volume: {path} is no JSON object of texts of at most 64 KiB")
    return options
