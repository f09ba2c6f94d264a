"""What an emulator sees of the node in its jail: what its domain document names, and QEMU's own."""

import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from attrs import evolve

from virtlet.model.launch import Visible

_SYSTEM = (
    # Programs, libraries and firmware, and where the dynamic loader looks.
    *("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin"),
    *("/etc/ld.so.cache", "/etc/qemu"),
    # How many CPUs there are, and whether memory may be promised beyond what is there.
    *("/sys/devices/system/cpu", "/sys/devices/system/node", "/proc/sys/vm/overcommit_memory"),
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_KVM = Visible(path=Path("/dev/kvm"), writable=True)


def visible(domain: Element, *, kvm: bool = True) -> tuple[Visible, ...]:
    """All that an emulator of this domain opens by a path.

    Args:
        domain: the document as libvirt has it.
        kvm: whether it opens KVM's device, and does not get a descriptor.
    """
    found = [Visible(path=Path(path), optional=True) for path in _SYSTEM]
    found += [Visible(path=Path(path), writable=True) for path in _DEVICES]
    if kvm and domain.get("type") == "kvm":
        found.append(_KVM)
    for path in ("os/loader", "os/kernel", "os/initrd", "os/dtb"):
        found += [Visible(path=Path(text)) for text in _texts(domain, path)]
    found += [Visible(path=Path(text), writable=True) for text in _texts(domain, "os/nvram")]
    for disk in domain.iterfind("devices/disk"):
        found += _of_disk(disk)
    for share in domain.iterfind("devices/filesystem"):
        # With virtiofs the directory is virtiofsd's to open, which runs outside.
        driver = share.find("driver")
        if driver is None or driver.get("type") != "virtiofs":
            writable = share.find("readonly") is None
            shared = _sources(share, "source", "dir", writable=writable)
            found += [evolve(item, inner=True) for item in shared]
    for kind in ("serial", "console", "channel", "parallel"):
        for device in domain.iterfind(f"devices/{kind}[@type='pipe']"):
            for source in device.iterfind("source"):
                found += _of_pipe(source.get("path", ""))
    for source in domain.iterfind("devices/tpm/backend[@type='external']/source"):
        found.append(Visible(path=Path(source.get("path", "")), writable=True))
    return tuple(found)


def _of_disk(disk: Element) -> Iterator[Visible]:
    writable = disk.find("readonly") is None and disk.get("device") != "cdrom"
    for attribute in ("file", "dev"):
        yield from _sources(disk, "source", attribute, writable=writable)
        for below in disk.iter("backingStore"):
            yield from _sources(below, "source", attribute)


def _sources(
    parent: Element, name: str, attribute: str, *, writable: bool = False
) -> Iterator[Visible]:
    for source in parent.iterfind(name):
        if path := source.get(attribute):
            yield Visible(path=Path(path), writable=writable)


def _of_pipe(path: str) -> Iterator[Visible]:
    """Both ends of a console, or the one file that serves for both."""
    for end in (f"{path}.in", f"{path}.out", path):
        if path and os.path.lexists(end):
            yield Visible(path=Path(end), writable=True)


def _texts(domain: Element, path: str) -> Iterator[str]:
    for element in domain.iterfind(path):
        if text := (element.text or "").strip():
            yield text
