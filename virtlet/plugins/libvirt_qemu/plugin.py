"""libvirt_qemu: virtual machines by libvirt and QEMU."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from virtlet import hookimpl
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.node import Node
from virtlet.model.option import Option, Settings
from virtlet.plugins.libvirt_qemu.make import make_hypervisor
from virtlet.plugins.libvirt_qemu.options import OPTIONS

if TYPE_CHECKING:
    from virtlet.plugins.libvirt_qemu.hypervisor import LibvirtHypervisor


class Plugin:
    """The hooks of this plugin."""

    VIRTLET_HOOK_API = 1

    def __init__(self) -> None:
        self._settings: tuple[Settings, Node] | None = None
        self._hypervisor: LibvirtHypervisor | None = None
        self._making = threading.Lock()

    @hookimpl
    def virtlet_options(self) -> Sequence[Option[Any]]:
        """Which libvirt, and whether to use KVM."""
        return OPTIONS

    @hookimpl
    def virtlet_configure(self, settings: Settings, node: Node) -> None:
        """Keep the settings until a hypervisor is asked for."""
        self._settings = (settings, node)

    @hookimpl
    def virtlet_hypervisor(self) -> Hypervisor | None:
        """One for all handlers."""
        if self._settings is None:
            return None
        with self._making:
            if self._hypervisor is None:
                self._hypervisor = make_hypervisor(*self._settings)
            return self._hypervisor

    @hookimpl
    def virtlet_shutdown(self) -> None:
        """Disconnect."""
        if self._hypervisor is not None:
            self._hypervisor.close()
