"""From settings to a hypervisor."""

import logging
from typing import TYPE_CHECKING

from virtlet.errors import FailedPrecondition
from virtlet.model.hypervisor import HypervisorInfo
from virtlet.model.node import Node
from virtlet.model.option import Settings
from virtlet.plugins.libvirt_qemu.accelerator import examine
from virtlet.plugins.libvirt_qemu.library import quietly
from virtlet.plugins.libvirt_qemu.options import DISABLE_KVM, KVM, LIBVIRT_URI
from virtlet.plugins.libvirt_qemu.qemu_conf import locate

if TYPE_CHECKING:
    from virtlet.plugins.libvirt_qemu.hypervisor import LibvirtHypervisor

log = logging.getLogger(__name__)


def make_hypervisor(config: Settings, node: Node) -> "LibvirtHypervisor":
    """The hypervisor that the settings describe, not connected yet.

    Raises:
        InvalidArgument: the libvirt URI is not usable.
        FailedPrecondition: the emulator is not installed, or its user may not run it.
        VirtletError: it does not work.
    """
    place = locate(config[LIBVIRT_URI], node.data_dir)
    if node.emulator_problem:
        raise FailedPrecondition(node.emulator_problem)
    forced = config[KVM] == "force"
    asked = not config[DISABLE_KVM] and not forced
    host = examine(node, ask_kvm=asked)
    kvm = not config[DISABLE_KVM] and (forced or (host.kvm is not None and host.kvm.usable))
    if asked and not kvm and host.kvm is not None:
        log.warning("guests are emulated, which is slow", extra={"problem": host.kvm.reason})
    info = HypervisorInfo(
        name="QEMU", version=host.qemu_version, accelerator="kvm" if kvm else "qemu"
    )
    with quietly(place.root / "log/libvirt.log" if place.root else None):
        from virtlet.plugins.libvirt_qemu.hypervisor import LibvirtHypervisor
    return LibvirtHypervisor(place, node, info)
