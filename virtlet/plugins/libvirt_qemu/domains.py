"""Our domains among all that libvirt has: their mark, and what libvirt knows of them.

Source: virDomainState of libvirt's domain API.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from virtlet.model.hypervisor import DomainState, Observation
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu import failures
from virtlet.plugins.libvirt_qemu.connections import Connections
from virtlet.plugins.libvirt_qemu.domain_endings import RunRecords, exit_by_reason

NAMESPACE = "urn:virtlet:domain:1"
_PREFIX = "virtlet"
_QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
_VARIABLES = f"{{{_QEMU_NAMESPACE}}}commandline/{{{_QEMU_NAMESPACE}}}env"
# At import, as one of two threads that register a namespace at the same time fails.
ElementTree.register_namespace(_PREFIX, NAMESPACE)
ElementTree.register_namespace("qemu", _QEMU_NAMESPACE)

_LIVE = {
    libvirt.VIR_DOMAIN_RUNNING: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: DomainState.RUNNING,
    # The guest has powered off; the emulator still writes its caches.
    libvirt.VIR_DOMAIN_SHUTDOWN: DomainState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: DomainState.PAUSED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: DomainState.PAUSED,
    # Panicked, and preserved instead of ended: its CPUs stand still.
    libvirt.VIR_DOMAIN_CRASHED: DomainState.PAUSED,
}

EVENT_DELAY = 0.5
"""Seconds to wait for the event of an end, which says more exactly how a VM ended."""


def flaw(machine: Machine, domain: Element) -> str:
    """Why a document cannot be the machine's, as a clause; "" if it can.

    The domain is found by its uuid, and its files by its name, which must be unique. Only the
    machine's emulator, with the machine's variables, takes part in its launch.
    """
    vm_id = machine.vm.id
    if domain.tag != "domain":
        return "that is not a <domain>"
    if [canonical(text) for text in _texts(domain, "uuid")] != [vm_id]:
        return "whose <uuid> is not the VM's id"
    if [vm_id[:12] in name for name in _texts(domain, "name")] != [True]:
        return "whose <name> does not have the first 12 digits of the VM's id in it"
    if _texts(domain, "devices/emulator") != [str(machine.vmwrapper)]:
        return "whose <emulator> is not the machine's"
    given = [(env.get("name"), env.get("value")) for env in domain.findall(_VARIABLES)]
    lent = [item for item in given if item[0] in machine.environment]
    if len(lent) != len(machine.environment) or dict(lent) != machine.environment:
        return "whose <qemu:env> elements do not give vmwrapper the machine's variables"
    return ""


def mark(domain: Element, vm_id: str, instance: str) -> None:
    """Put our mark into the metadata of a domain document, in place of any other mark.

    Args:
        domain: the document.
        vm_id: id of the VM.
        instance: of the manager that the VM is of.
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
    """A UUID in the form of VM ids, 32 lowercase hexadecimal digits; "" if it is not a UUID."""
    try:
        return uuid.UUID(text.strip()).hex
    except ValueError:
        return ""


def _texts(domain: Element, path: str) -> list[str]:
    return [element.text or "" for element in domain.findall(path)]


class Domains:
    """Finds our domains among those of libvirt.

    Args:
        connections: to libvirt.
        instance: of the manager, which is in the mark of its domains.
    """

    def __init__(self, connections: Connections, instance: str) -> None:
        self._connections = connections
        self._instance = instance
        self._ours: set[str] = set()
        """Ids of domains known to carry our mark: reading it is a call for each domain."""

    @contextlib.contextmanager
    def call(self, doing: str) -> Iterator[Any]:
        """A connection for some calls; errors of libvirt become ours.

        Args:
            doing: what is tried, on what: "define VM 0123".
        """
        try:
            with self._connections.use() as connection:
                yield connection
        except libvirt.libvirtError as error:
            raise failures.translate(error, doing) from None

    def find(self, connection: Any, vm_id: str) -> Any | None:
        """The domain of a VM of ours, or None."""
        domain = self.look_up(connection, vm_id)
        return domain if domain is not None and self.is_ours(domain, vm_id) else None

    def look_up(self, connection: Any, vm_id: str) -> Any | None:
        """The domain with this uuid, ours or not, or None."""
        with missing_is_fine():
            return connection.lookupByUUIDString(vm_id)
        self.forget(vm_id)
        return None

    def all(self, connection: Any) -> Iterator[tuple[str, Any]]:
        """VM id and domain of each that is ours."""
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
        """Read the mark again the next time, because the domain is gone or about to be replaced."""
        self._ours.discard(vm_id)


@contextlib.contextmanager
def missing_is_fine() -> Iterator[None]:
    """Ignore that the domain does not exist."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not failures.is_missing(error):
            raise


@contextlib.contextmanager
def wrong_state_is_fine() -> Iterator[None]:
    """Ignore that the domain is in the wanted state already."""
    try:
        yield
    except libvirt.libvirtError as error:
        if not failures.is_wrong_state(error):
            raise


def live_state(state: int, reason: int) -> DomainState | None:
    """The state of a domain that has an emulator; None if it is shut off."""
    starting = (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP)
    if (state, reason) == starting:
        return DomainState.RUNNING  # as it will be in a moment
    return _LIVE.get(state)


class DomainStates:
    """Observes our domains.

    How a VM ended is what its record says. If there is none yet, its event is given some seconds
    (`patience`) to write it; then the reason of the state is taken. Without patience (None) the
    observation has no `exit`.

    Args:
        domains: finds them.
        runs: where ends are recorded.
        by_signal: whether a signal ended the emulator of the domain with this name.
    """

    def __init__(
        self, domains: Domains, runs: RunRecords, by_signal: Callable[[str], bool]
    ) -> None:
        self._domains = domains
        self._runs = runs
        self._by_signal = by_signal

    def one(self, vm_id: str, patience: float | None = EVENT_DELAY) -> Observation | None:
        """One of our domains now, or None."""
        with self._domains.call(f"look at VM {vm_id}") as connection:
            domain = self._domains.find(connection, vm_id)
            if domain is None:
                return None
            with missing_is_fine():
                return self._observation(vm_id, domain, patience)
            return None

    def all(self, patience: float | None = EVENT_DELAY) -> Mapping[str, Observation]:
        """All of our domains now, by VM id."""
        found: dict[str, Observation] = {}
        with self._domains.call("list VMs") as connection:
            for vm_id, domain in self._domains.all(connection):
                with missing_is_fine():
                    found[vm_id] = self._observation(vm_id, domain, patience)
        return found

    def _observation(self, vm_id: str, domain: Any, patience: float | None) -> Observation:
        state, reason = domain.state()
        live = live_state(state, reason)
        if live is not None:
            return Observation(vm_id=vm_id, state=live)
        if not self._runs.begun(vm_id):
            return Observation(vm_id=vm_id, state=DomainState.DEFINED)
        ended = self._runs.wait_for_end(vm_id, patience or 0.0)
        if ended is None and patience is not None:
            how = exit_by_reason(reason, lambda: self._by_signal(domain.name()))
            ended = self._runs.end(vm_id, how)
        return Observation(vm_id=vm_id, state=DomainState.STOPPED, exit=ended)
