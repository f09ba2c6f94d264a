"""What makes a domain document the one of a VM of ours."""

import uuid
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from virtlet.model.vm import Machine

NAMESPACE = "urn:virtlet:domain:1"
_PREFIX = "virtlet"
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def flaw(machine: Machine, domain: Element) -> str:
    """Why a document cannot be the machine's, as a clause; "" when it can.

    The domain is found by its uuid, and its files by its name, which no other may have. Only
    the machine's emulator takes part in its launch.
    """
    vm_id = machine.vm.id
    if domain.tag != "domain":
        return "that is no <domain>"
    if [canonical(text) for text in _texts(domain, "uuid")] != [vm_id]:
        return "whose <uuid> is not the VM's id"
    if [vm_id[:12] in name for name in _texts(domain, "name")] != [True]:
        return "whose <name> does not have the first 12 digits of the VM's id in it"
    if _texts(domain, "devices/emulator") != [str(machine.emulator)]:
        return "whose <emulator> is not the machine's"
    return ""


def mark(domain: Element, vm_id: str, instance: str) -> None:
    """Put our mark into a domain document, in place of any that is there.

    Args:
        domain: the document.
        vm_id: the VM it is for.
        instance: the manager whose VM it is.
    """
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ElementTree.SubElement(domain, "metadata")
    for old in metadata.findall(f"{{{NAMESPACE}}}vm"):
        metadata.remove(old)
    ElementTree.SubElement(metadata, f"{{{NAMESPACE}}}vm", {"instance": instance, "id": vm_id})


def written(domain: Element) -> str:
    """The document as text, with the namespaces' usual prefixes."""
    ElementTree.register_namespace(_PREFIX, NAMESPACE)
    ElementTree.register_namespace("qemu", _QEMU_NAMESPACE)
    return ElementTree.tostring(domain, encoding="unicode")


def is_marked(domain: Any, instance: str) -> bool:
    """Whether a libvirt domain is one of this manager's."""
    try:
        text = domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_DOMAIN_METADATA,
            libvirt.VIR_ERR_NO_DOMAIN,
        ):
            return False
        raise
    element = ElementTree.fromstring(text)
    return element.get("instance") == instance and element.get("id") == canonical(
        domain.UUIDString()
    )


def canonical(text: str) -> str:
    """A UUID as we write VM ids: 32 lowercase hexadecimal digits; "" for what is none."""
    try:
        return uuid.UUID(text.strip()).hex
    except ValueError:
        return ""


def _texts(domain: Element, path: str) -> list[str]:
    return [element.text or "" for element in domain.findall(path)]
