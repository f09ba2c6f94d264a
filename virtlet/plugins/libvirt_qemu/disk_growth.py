"""Block devices that grow while a VM runs: the guest is told of their new size.

Nobody calls a runtime when a volume has grown: a CSI plugin grows the device on the node, and for
volumes of mode Block that is all. So the devices are looked at. Asking their size takes no libvirt;
it is called when a VM is seen for the first time, and when a device has grown.
"""

import json
import logging
import os
import stat
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
import libvirt_qemu
from attrs import define, frozen

from virtlet.errors import VirtletError
from virtlet.plugins.libvirt_qemu.domains import Domains, missing_is_fine
from virtlet.threads import Worker

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between looks."""
PATIENCE = 1.0
"""Seconds for a look under way when the manager ends."""
TOPIC = "DiskNotGrown"
_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"

Tell = Callable[[str, str, str], None]
"""Tells the owner of a VM: its id, the topic, and one sentence."""


@frozen
class _Part:
    """A part of a device, from an offset to what was the end when the VM was made."""

    offset: int
    """Bytes."""
    size: int
    """Bytes, at the start of the VM."""
    index: str
    """Of the emulator's block nodes for it."""
    discard: str
    """`unmap` or `ignore`."""


@define
class _Device:
    """A disk that is a block device of the node."""

    target: str
    """Its name in the domain document."""
    serial: str
    """By which the guest knows it."""
    nvme: bool
    """Whether it keeps the size of the VM's start: QEMU 10.0's NVMe controller reads it then, and
    has no event for a change."""
    path: str
    part: "_Part | None"
    """Where the guest sees a part of the device alone: a root disk that outlives its pod."""
    size: int
    """Bytes that the guest sees."""
    failed: int = 0
    """A size that the guest has not got; tried again, and told once."""


class DiskGrowth:
    """Looks at the devices of running VMs on a thread of its own, which an emulator that does not
    answer may hold up.

    Args:
        domains: finds the VMs.
        tell: tells their owners of what has not grown.
    """

    def __init__(self, domains: Domains, tell: Tell) -> None:
        self._domains = domains
        self._tell = tell
        self._known: dict[str, list[_Device]] = {}
        """Of running VMs."""
        self._worker = Worker("disk-growth", self._turn)

    def start(self) -> None:
        """Start looking; idempotent."""
        self._worker.start(INTERVAL)

    def stop(self) -> None:
        """End, also where an emulator does not answer; idempotent."""
        self._worker.stop(PATIENCE)

    def _turn(self) -> float:
        try:
            self.look()
        except VirtletError as error:
            log.info("devices not looked at", extra={"problem": str(error)})
        return INTERVAL

    def look(self) -> None:
        """Tell the guests of all devices that have grown since the last look.

        Raises:
            Unavailable: libvirt is away.
        """
        with self._domains.call("look at the devices of VMs") as connection:
            running = {}
            for vm_id, domain in self._domains.all(connection):
                with missing_is_fine():
                    if domain.isActive():
                        devices = self._known.get(vm_id)
                        running[vm_id] = _devices(domain) if devices is None else devices
                        for device in running[vm_id]:
                            self._grow(vm_id, domain, device)
        self._known = running

    def _grow(self, vm_id: str, domain: Any, device: _Device) -> None:
        part = device.part
        size = _size(device.path) - (part.offset if part else 0)
        if size <= device.size:
            return
        about = {"vm": vm_id, "disk": device.target, "bytes": size}
        try:
            if device.nvme:
                raise _Refused("an NVMe disk has its size from the start of the VM")
            if part:
                _grow_part(domain, part, size)
            else:
                domain.blockResize(device.target, size, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
        except (libvirt.libvirtError, _Refused) as error:
            if device.failed != size and domain.isActive():
                log.warning("disk not grown", extra=about | {"problem": str(error)})
                self._tell(vm_id, TOPIC, _words(device, size))
            device.failed = size
        else:
            log.info("disk grown", extra=about)
            device.size = size


def _devices(domain: Any) -> list[_Device]:
    found = []
    document = ElementTree.fromstring(domain.XMLDesc())
    models = _models(document)
    for disk in document.iterfind("devices/disk[@type='block']"):
        source, target = disk.find("source"), disk.find("target")
        # A disk that can only be read keeps its size.
        if source is None or target is None or disk.find("readonly") is not None:
            continue
        name = target.get("dev", "")
        path, part = source.get("dev", ""), _part(disk, source)
        nvme = models.get(_alias(disk)) == "nvme"
        if nvme:
            # libvirt looks for a device of virtio, and fails.
            size = part.size if part else _size(path)
        else:
            size, _, _ = domain.blockInfo(name)
        found.append(
            _Device(
                target=name,
                serial=disk.findtext("serial", name),
                nvme=nvme,
                path=path,
                part=part,
                size=size,
            )
        )
    return found


def _models(document: Element) -> dict[str, str]:
    """Alias to what QEMU makes of a device instead of libvirt's model of it."""
    found = {}
    for device in document.iterfind(f"{_QEMU}override/{_QEMU}device"):
        for each in device.iterfind(f"{_QEMU}frontend/{_QEMU}property[@name='driver']"):
            found[device.get("alias", "")] = each.get("value", "")
    return found


def _alias(disk: Element) -> str:
    alias = disk.find("alias")
    return "" if alias is None else alias.get("name", "")


def _part(disk: Element, source: Element) -> _Part | None:
    found, driver = source.find("slices/slice"), disk.find("driver")
    if found is None:
        return None
    discard = "ignore" if driver is None else driver.get("discard", "ignore")
    offset, size = (int(found.get(name, "0")) for name in ("offset", "size"))
    return _Part(offset, size, source.get("index", ""), discard)


def _words(device: _Device, size: int) -> str:
    """What the pod's owner is told of a disk that has not grown for the guest."""
    told = f"the volume of the disk with serial {device.serial} has grown to {size} bytes, "
    told += f"and the guest goes on with {device.size}"
    if device.nvme:
        return (
            f"{told}, as NVMe disks keep the size of the VM's start: run the pod again, or have "
            "its disks on scsi or virtio (annotation VirtletDiskDriver), which grow while it runs"
        )
    return f"{told}, as its emulator does not take the new size: run the pod again"


class _Refused(Exception):
    """The emulator does not do what it is asked for."""


def _grow_part(domain: Any, part: _Part, size: int) -> None:
    """Let a part end where its device does, and tell the guest.

    libvirt grows no part that begins behind its device's start. The emulator does: opened anew
    without a size, the part can be resized. Source: blockdev-reopen in QEMU's QMP reference, which
    wants each option again that is not to become its default.
    """
    name = f"libvirt-{part.index}-slice-sto"
    nodes = _ask(domain, "query-named-block-nodes", flat=True)
    node = next((each for each in nodes if each["node-name"] == name), None)
    if node is None:
        raise _Refused(f"its emulator has no block node {name}")
    options = {
        "driver": "raw",
        "node-name": name,
        "file": f"libvirt-{part.index}-storage",
        "offset": part.offset,
        "read-only": False,
        "discard": part.discard,
        "detect-zeroes": node["detect_zeroes"],
        "cache": {key: node["cache"][key] for key in ("direct", "no-flush")},
    }
    _ask(domain, "blockdev-reopen", options=[options])
    _ask(domain, "block_resize", **{"node-name": name, "size": size})


def _ask(domain: Any, command: str, **arguments: object) -> Any:
    """What the emulator answers.

    Raises:
        _Refused: with an error.
        libvirt.libvirtError: not at all.
    """
    text = json.dumps({"execute": command, "arguments": arguments})
    answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, text, 0))
    if "error" in answer:
        raise _Refused(f"{command}: {answer['error'].get('desc')}")
    return answer["return"]


def _size(path: str) -> int:
    """Bytes of a block device; 0 where there is none any more.

    The directory is the emulator's user's, so no link is followed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        if not stat.S_ISBLK(os.fstat(descriptor).st_mode):
            return 0
        return os.lseek(descriptor, 0, os.SEEK_END)
    except OSError:
        return 0
    finally:
        os.close(descriptor)
