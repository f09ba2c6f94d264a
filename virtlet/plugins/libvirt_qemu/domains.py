"""What makes a domain one of ours, and finding ours among all that libvirt has."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu import failures
from virtlet.plugins.libvirt_qemu.connections import Connections

NAMESPACE = "urn:virtlet:domain:1"
_PREFIX = "virtlet"
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
# Here, as two threads that register one at the same time make one of them fail.
ElementTree.register_namespace(_PREFIX, NAMESPACE)
ElementTree.register_namespace("qemu", _QEMU_NAMESPACE)


# What makes a domain document the one of a VM of ours.


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
    if _texts(domain, "devices/emulator") != [str(machine.vmwrapper)]:
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


# Finding our domains among all that libvirt has.


class Domains:
    """libvirt's domains, ours told from others'.

    Args:
        connections: to libvirt.
        instance: the manager whose domains are ours.
    """

    def __init__(self, connections: Connections, instance: str) -> None:
        self._connections = connections
        self._instance = instance
        self._ours: set[str] = set()
        """Ids of domains known to carry our mark: reading it is a call for each domain."""

    @contextlib.contextmanager
    def call(self, doing: str) -> Iterator[Any]:
        """A connection for some calls; libvirt's errors in it become ours.

        Args:
            doing: what is tried, on what: "define VM 0123".
        """
        try:
            with self._connections.use() as connection:
                yield connection
        except libvirt.libvirtError as error:
            raise failures.translate(error, doing) from None

    def find(self, connection: Any, vm_id: str) -> Any | None:
        """Our domain, or None where there is none or it is not ours."""
        domain = self.look_up(connection, vm_id)
        return domain if domain is not None and self.is_ours(domain, vm_id) else None

    def look_up(self, connection: Any, vm_id: str) -> Any | None:
        """Whoever's domain has this uuid."""
        with missing_is_fine():
            return connection.lookupByUUIDString(vm_id)
        self.forget(vm_id)
        return None

    def all(self, connection: Any) -> Iterator[tuple[str, Any]]:
        """VM id and domain of all that are ours."""
        for domain in connection.listAllDomains():
            vm_id = canonical(domain.UUIDString())
            if self.is_ours(domain, vm_id):
                yield vm_id, domain

    def is_ours(self, domain: Any, vm_id: str) -> bool:
        """Whether a domain carries our mark."""
        if vm_id not in self._ours and is_marked(domain, self._instance):
            self._ours.add(vm_id)
        return vm_id in self._ours

    def forget(self, vm_id: str) -> None:
        """Look again the next time: the domain is gone or about to be another."""
        self._ours.discard(vm_id)


@contextlib.contextmanager
def missing_is_fine() -> Iterator[None]:
    """Pass over that there is no such domain (any more)."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not failures.is_missing(error):
            raise


@contextlib.contextmanager
def wrong_state_is_fine() -> Iterator[None]:
    """Pass over that the domain is in the wanted state already."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not failures.is_wrong_state(error):
            raise
