"""MAC addresses and UUID of the pod's name, without a VM and with one."""

from virtlet_example_identity import Plugin, mac_of

from virtlet.api import Flavor, Network, Nic
from virtlet.testing import BootGuest, check_plugin, make_pod

UP = "until ip -4 -o address show dev eth0 | grep inet; do sleep 0.2; done"
IDENTITY = ("/sys/class/net/eth0/address", "/sys/class/dmi/id/product_uuid")


def test_the_manager_takes_the_plugin() -> None:
    check_plugin(Plugin)


def test_nics_have_the_addresses_of_the_pods_name() -> None:
    """Whatever the pod's id is; each NIC has another."""
    nics = tuple(Nic(name=f"eth{n}", mac=f"02:00:00:00:00:0{n}", mtu=1500) for n in range(2))
    network, plugin = Network(netns=None, nics=nics), Plugin()
    first = plugin.virtlet_adjust_network(make_pod(), network)
    assert first == plugin.virtlet_adjust_network(make_pod(id="c" * 32), network)
    assert len({nic.mac for nic in (*nics, *first.nics)}) == 4
    other = plugin.virtlet_adjust_network(make_pod(name="web-2"), network)
    assert other.nics[0].mac != first.nics[0].mac


def test_a_uuid_that_somebody_asked_for_stays() -> None:
    """Else it is that of the pod's name."""
    plugin = Plugin()
    found = [plugin.virtlet_adjust_flavor(make_pod(id=digit * 32), Flavor()) for digit in "ab"]
    assert found[0] == found[1] != Flavor()
    assert plugin.virtlet_adjust_flavor(make_pod(), Flavor(system_uuid="mine")) is None


def test_a_guest_of_dhcp_is_known_by_its_adjusted_address(virtlet_guest: BootGuest) -> None:
    """The DHCP server answers nobody else, and the seed does not tell the guest its address."""
    guest = virtlet_guest(annotations={"VirtletForceDHCPNetworkConfig": "true"})
    assert f"inet {guest.address}/" in guest.exec("sh", "-c", UP).stdout
    mac, uuid = guest.exec("cat", *IDENTITY).stdout.split()
    name = f"{guest.pod.metadata.namespace}/{guest.pod.metadata.name}"
    assert mac == mac_of(f"{name} eth0")
    assert uuid[14] == "5"  # made of a name
