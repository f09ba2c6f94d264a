"""A watchdog for every VM: a guest that stops feeding it is reset, or whatever the pod asks for."""

from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element, SubElement

from virtlet.api import Annotation, Machine, choice, hookimpl

ACTION: Annotation[str] = Annotation(
    name="ExampleWatchdogAction",
    kind=choice("reset", "poweroff", "pause", "none"),
    default="reset",
    help="What the example plugin's watchdog does to a guest that hangs",
)


class Plugin:
    """Edits the domain document that another plugin has written."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_annotations(self) -> Sequence[Annotation[Any]]:
        """What a pod may ask for; a wrong value is refused before anything is made."""
        return [ACTION]

    @hookimpl
    def virtlet_customize_domain(self, machine: Machine, domain: Element) -> None:
        """Add the device; a renderer may have put one there that the pod does not want."""
        devices = domain.find("devices")
        if devices is None:
            devices = SubElement(domain, "devices")
        for other in devices.findall("watchdog"):
            devices.remove(other)
        action = ACTION.of(machine.vm.pod)
        SubElement(devices, "watchdog", {"model": "i6300esb", "action": action})
