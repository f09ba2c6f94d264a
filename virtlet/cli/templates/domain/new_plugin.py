"""VMs have a watchdog, which resets a guest that opened it and hangs, unless their pod says no."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from virtlet.api import BOOLEAN, Annotation, Machine, hookimpl

WATCHDOG: Annotation[bool] = Annotation(
    name="NewPluginWatchdog",
    kind=BOOLEAN,
    default=True,
    help="Whether the VM has a watchdog",
)


class Plugin:
    """Edits the domain document that another plugin has rendered."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """Declare what a pod may ask for; the core refuses a wrong value."""
        return [WATCHDOG]

    @hookimpl
    def virtlet_customize_domain(self, machine: Machine, domain: Element) -> None:
        """Add the device; uuid, name and emulator of the domain are not ours to change."""
        devices = domain.find("devices")
        if devices is not None and WATCHDOG.of(machine.vm.pod):
            SubElement(devices, "watchdog", {"model": "i6300esb", "action": "reset"})
