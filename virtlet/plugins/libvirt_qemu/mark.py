"""The mark that tells our domains from those of others."""

import uuid
from typing import Any
from xml.etree import ElementTree

import libvirt

from virtlet.errors import InvalidArgument

NAMESPACE = "urn:virtlet:domain:1"
_PREFIX = "virtlet"
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"


def marked(document: str, vm_id: str, instance: str) -> tuple[str, str]:
    """Put our mark into a domain document.

    Args:
        document: libvirt XML.
        vm_id: the VM it is for; must be the document's uuid.
        instance: the manager whose VM it is.

    Returns:
        The document with the mark, and the domain's name.

    Raises:
        InvalidArgument: it is no domain document, or another VM's.
    """
    try:
        domain = ElementTree.fromstring(document)
    except ElementTree.ParseError as error:
        raise InvalidArgument(f"the domain document of VM {vm_id} is no XML: {error}") from None
    name = (domain.findtext("name") or "").strip()
    if domain.tag != "domain" or not name:
        raise InvalidArgument(f"the document of VM {vm_id} is no named <domain>")
    if canonical(domain.findtext("uuid") or "") != vm_id:
        raise InvalidArgument(f"the domain document of VM {vm_id} has another <uuid>")
    metadata = domain.find("metadata")
    if metadata is None:
        metadata = ElementTree.SubElement(domain, "metadata")
    for old in metadata.findall(f"{{{NAMESPACE}}}vm"):
        metadata.remove(old)
    ElementTree.SubElement(metadata, f"{{{NAMESPACE}}}vm", {"instance": instance, "id": vm_id})
    ElementTree.register_namespace(_PREFIX, NAMESPACE)
    ElementTree.register_namespace("qemu", _QEMU_NAMESPACE)
    return ElementTree.tostring(domain, encoding="unicode"), name


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
