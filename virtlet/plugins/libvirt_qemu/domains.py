"""Finding our domains among all that libvirt has."""

import contextlib
from collections.abc import Iterator
from typing import Any

import libvirt

from virtlet.plugins.libvirt_qemu import failures
from virtlet.plugins.libvirt_qemu.connections import Connections
from virtlet.plugins.libvirt_qemu.mark import canonical, is_marked


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
        """Look anew the next time: the domain is gone or about to be another."""
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
