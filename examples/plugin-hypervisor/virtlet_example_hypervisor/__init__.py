"""Plain QEMU: one process per VM, controlled by QMP, without libvirt."""

from collections.abc import Sequence
from typing import Any

from virtlet.api import BOOLEAN, Hypervisor, Node, Option, Settings, hookimpl
from virtlet_example_hypervisor.hypervisor import QemuHypervisor

KVM: Option[bool] = Option(
    field="exampleKVM",
    flag="--example-kvm",
    env="VIRTLET_EXAMPLE_KVM",
    kind=BOOLEAN,
    default="false",
    help="Run the VMs of the example hypervisor with KVM.",
)


class Plugin:
    """Offers the hypervisor to the handlers that name the plugin."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Whether to use KVM."""
        return [KVM]

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Make the hypervisor; the core opens it if a handler needs it."""
        self._hypervisor = QemuHypervisor(node, kvm=settings[KVM])

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor:
        """One for all handlers."""
        return self._hypervisor
