"""What a VM whose emulator has a user of its own gets from us, as that user has no way to it.

libvirt runs an emulator as its document says, and makes the files it makes as the driver's user.
"""

import os
import shutil
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

from attrs import evolve

from virtlet.errors import FailedPrecondition
from virtlet.host.files import new_disk_file
from virtlet.model.launch import LaunchFd, LaunchPart

_KVM = Path("/dev/kvm")
_FDSET = 64
"""Number of QEMU's descriptor set for KVM; libvirt counts its own from 0."""


def set_user(domain: Element, uid: int, gid: int) -> None:
    """Have a document's emulator run as a user; its files are that user's already."""
    for label in domain.findall("seclabel[@model='dac']"):
        domain.remove(label)
    label = SubElement(domain, "seclabel", {"type": "static", "model": "dac", "relabel": "no"})
    SubElement(label, "label").text = f"+{uid}:+{gid}"


def with_kvm(part: LaunchPart) -> LaunchPart:
    """Hand KVM over as a descriptor: the VM's user need not be able to open its device.

    Raises:
        FailedPrecondition: it cannot be opened.
    """
    try:
        descriptor = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        for item in part.fds:
            os.close(item.fd)
        raise FailedPrecondition(
            f"{_KVM}: {error.strerror}: see `virtlet serve --disable-kvm`"
        ) from None
    return evolve(
        part,
        fds=(*part.fds, LaunchFd(name="kvm", fd=descriptor)),
        # vmwrapper takes libvirt's own -accel away.
        arguments=(
            *("-add-fd", f"fd={{fd:kvm}},set={_FDSET}"),
            *("-accel", f"kvm,device=/dev/fdset/{_FDSET}"),
            *part.arguments,
        ),
    )


def make_nvram(domain: Element, uid: int, gid: int) -> Path | None:
    """Make the file of a document's UEFI variables from its template, unless it is there.

    Returns:
        The file; None for a document without one.

    Raises:
        FailedPrecondition: it cannot be made.
    """
    nvram = domain.find("os/nvram")
    if nvram is None or not (template := nvram.get("template")) or not nvram.text:
        return None
    path = Path(nvram.text)
    if os.path.lexists(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            new_disk_file(path, uid, gid) as descriptor,
            open(template, "rb") as source,
            os.fdopen(os.dup(descriptor), "wb") as target,
        ):
            shutil.copyfileobj(source, target)
    except OSError as error:
        raise FailedPrecondition(f"{path}, the UEFI variables: {error}") from None
    return path
