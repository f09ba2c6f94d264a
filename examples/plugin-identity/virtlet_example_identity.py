"""A pod that is made again is the same machine: MAC addresses and UUID follow from its name."""

from uuid import UUID, uuid5

from virtlet.api import Flavor, Network, Pod, evolve, hookimpl

OURS = UUID("5d1e1c6c-5f3b-4d0e-9d0b-3f0a6f1f7c11")
"""Keeps our UUIDs apart from those that others make of names."""


class Plugin:
    """Adjusts the machine and the network that other plugins chose."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_adjust_flavor(self, pod: Pod, flavor: Flavor) -> Flavor | None:
        """The UUID that the guest's firmware tells, unless somebody asked for another."""
        if flavor.system_uuid:
            return None
        return evolve(flavor, system_uuid=str(uuid5(OURS, pod.name)))

    @hookimpl
    def virtlet_adjust_network(self, pod: Pod, network: Network) -> Network:
        """A locally administered address for each NIC."""
        nics = (evolve(nic, mac=mac_of(f"{pod.name} {nic.name}")) for nic in network.nics)
        return evolve(network, nics=tuple(nics))


def mac_of(name: str) -> str:
    """A MAC address that follows from a name."""
    return "02:" + ":".join(f"{octet:02x}" for octet in uuid5(OURS, name).bytes[:5])
