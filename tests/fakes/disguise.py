"""A plugin that makes guests take QEMU's emulation for VMware.

Linux accepts CPUs that were not there at boot only from hypervisors it knows. It knows KVM, but not
QEMU's emulation, and no other hypervisor's mark can be given to that but this one: a serial number
and an I/O port that QEMU has of its own. Only so can a test without KVM see a CPU arrive.
"""

from xml.etree.ElementTree import Element, SubElement

from virtlet import hookimpl
from virtlet.model.vm import Machine


class Plugin:
    """Edits the domain document."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_customize_domain(self, machine: Machine, domain: Element) -> None:
        """Put the disguise on."""
        system, features = domain.find("sysinfo/system"), domain.find("features")
        assert system is not None
        assert features is not None
        SubElement(system, "entry", {"name": "serial"}).text = "VMware-1"
        SubElement(features, "vmport", {"state": "on"})
        cpu = domain.find("cpu")
        if cpu is None:
            cpu = SubElement(domain, "cpu")
        cpu.attrib.update({"mode": "custom", "match": "exact"})
        model = Element("model")
        model.text = "qemu64"
        cpu.insert(0, model)
        for name in ("hypervisor", "svm"):
            SubElement(cpu, "feature", {"name": name, "policy": "disable"})
