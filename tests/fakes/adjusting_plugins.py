"""Plugins that change what others answered, well and badly."""

from typing import Any

from attrs import evolve

from tests.fakes.models import untyped
from tests.fakes.plugins import Current
from virtlet import hookimpl
from virtlet.model.flavor import Flavor
from virtlet.model.network import Network, Nic


class One(Current):
    """Answers with one vCPU, and with two NICs."""

    @hookimpl
    def virtlet_flavor(self) -> Flavor:
        return Flavor(vcpus=1)

    @hookimpl
    def virtlet_setup_network(self) -> Network:
        nics = (Nic(name=f"eth{n}", mac=f"02:00:00:00:00:0{n}", mtu=1500) for n in range(2))
        return Network(netns=None, nics=tuple(nics))


class Adds(Current):
    """Wants one vCPU more."""

    @hookimpl
    def virtlet_adjust_flavor(self, flavor: Flavor) -> Flavor:
        return evolve(flavor, vcpus=flavor.vcpus + 1)


class Doubles(Current):
    """Wants twice as many vCPUs."""

    @hookimpl
    def virtlet_adjust_flavor(self, flavor: Flavor) -> Flavor:
        return evolve(flavor, vcpus=flavor.vcpus * 2)


class Content(Current):
    """Wants nothing else."""

    @hookimpl
    def virtlet_adjust_flavor(self) -> None:
        return None


class Raises(Current):
    """Raises, with a secret in its text."""

    @hookimpl
    def virtlet_adjust_flavor(self) -> Any:
        raise ValueError("hunter2")


class WrongType(Current):
    """Returns what is no flavor."""

    @hookimpl
    def virtlet_adjust_flavor(self) -> Any:
        return {"vcpus": 4}


class Spoils(Current):
    """Makes a flavor with something wrong inside."""

    @hookimpl
    def virtlet_adjust_flavor(self, flavor: Flavor) -> Flavor:
        return evolve(flavor, vcpus=untyped("hunter2"))


class Meddles(Current):
    """Changes what it is given in place, and raises."""

    @hookimpl
    def virtlet_adjust_flavor(self, flavor: Flavor) -> Any:
        assert isinstance(flavor.extras, dict)
        flavor.extras["half"] = "done"
        raise ValueError


class Told(Current):
    """Changes the first NIC, or the network, as it is told."""

    def __init__(self) -> None:
        self.nic: dict[str, Any] = {}
        self.network: dict[str, Any] = {}

    @hookimpl
    def virtlet_adjust_network(self, network: Network) -> Network:
        first, *others = network.nics
        return evolve(network, **{"nics": (evolve(first, **self.nic), *others)} | self.network)


class Shouts(Current):
    """Makes a NIC whose MAC address no guest has so."""

    @hookimpl
    def virtlet_setup_network(self) -> Network:
        return Network(netns=None, nics=(Nic(name="eth0", mac="02:00:00:00:00:AA", mtu=1500),))
