"""The network of a pod, as its VM sees it."""

from pathlib import Path

from attrs import frozen

from virtlet.model.pod import DnsConfig
from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class Route:
    """A route of the guest."""

    destination: str
    """CIDR; `0.0.0.0/0` and `::/0` are the default routes."""
    gateway: str = ""
    """"" for a destination on the link."""
    metric: int = 0
    """0 when unset."""


@frozen(kw_only=True, field_transformer=typed)
class Nic:
    """One NIC of the guest."""

    name: str
    """What the network plugin calls it, unique within the pod: eth0, net1, …"""
    mac: str
    """Lower case, colons."""
    mtu: int
    addresses: tuple[str, ...] = ()
    """CIDR form, IPv4 and IPv6, the primary first."""
    routes: tuple[Route, ...] = ()
    kind: str = "tap"
    """How the hypervisor connects it. `tap`: it opens the tap `device`. `vfio`: the guest has the
    hardware itself, the PCI device `device`, whose driver is vfio-pci."""
    device: str = ""
    """`tap`: the tap's name in the pod's network namespace, or in the node's own where the pod has
    none. It is made with `vnet_hdr` and without `pi`; the hypervisor alone opens it.
    `vfio`: the PCI address, `0000:3b:02.1`. The plugin that made the NIC shows the emulator the
    device's group in its part of the launch."""
    queues: int = 1
    """Pairs of queues; more than one takes a tap made with `multi_queue`."""
    boot_order: int = 0
    """When the firmware tries to boot from it, 1 first; 0 never."""


@frozen(kw_only=True, field_transformer=typed)
class Network:
    """What setting up a pod's network gave."""

    netns: Path | None
    """The pod's network namespace; None where there is none."""
    nics: tuple[Nic, ...] = ()
    dns: DnsConfig = DnsConfig()
    details: str = ""
    """The plugin's own notes (JSON), handed back to it for teardown."""

    @property
    def ips(self) -> tuple[str, ...]:
        """All addresses without prefix lengths, the primary first."""
        return tuple(a.split("/")[0] for nic in self.nics for a in nic.addresses)
