"""The `<cpu>` element."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from virtlet.errors import InvalidArgument
from virtlet.model.vm import Machine

EXTRA = "domain_cpu"
"""Name in a flavor's extras of a whole `<cpu>` element that wins over its `cpu_model`."""
_HOST = ("host-model", "host-passthrough")


def cpu_element(machine: Machine, default_model: str) -> Element | None:
    """The `<cpu>` element of a machine; None leaves the CPU to QEMU.

    Args:
        machine: whose CPU.
        default_model: the node's, for flavors that name none.

    Raises:
        InvalidArgument: the flavor's own element is no `<cpu>` element.
    """
    if machine.flavor.extras.get(EXTRA):
        return _checked(machine)
    kvm = machine.accelerator == "kvm"
    # Without KVM the smallest model is the fastest: an emulated guest that finds more features
    # uses them, at a price.
    model = machine.flavor.cpu_model or default_model or ("host-model" if kvm else "")
    if not model:
        return None
    cpu = Element("cpu")
    if model in _HOST:
        # Emulation has no host CPU to pass on; its own best one serves those who ask for features.
        cpu.set("mode", model if kvm else "maximum")
    else:
        cpu.set("mode", "custom")
        cpu.set("match", "exact")
        name = ElementTree.SubElement(cpu, "model", {"fallback": "forbid"})
        name.text = model
    return cpu


def _checked(machine: Machine) -> Element:
    try:
        cpu = ElementTree.fromstring(machine.flavor.extras[EXTRA])
    except ElementTree.ParseError as error:
        raise InvalidArgument(
            f"the CPU setting of VM {machine.vm.name} is no XML ({error}): "
            "see the annotation VirtletLibvirtCPUSetting"
        ) from None
    if cpu.tag != "cpu":
        raise InvalidArgument(
            f"the CPU setting of VM {machine.vm.name} is a <{cpu.tag}> element, not <cpu>"
        )
    return cpu
