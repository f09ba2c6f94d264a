"""Plugins that change what another plugin answered, one after the other."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import models
from tests.fakes.adjusting_plugins import Told
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.errors import PluginError
from virtlet.model.flavor import Flavor
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig

FIRST = "02:00:00:00:00:00"
SECOND = "02:00:00:00:00:01"


def _entry(name: str) -> EntryPoint:
    return EntryPoint(name, f"tests.fakes.adjusting_plugins:{name}", "virtlet")


def _flavor(directory: Path, *active: str, installed: tuple[str, ...] = ()) -> Flavor:
    vm = models.vm(directory, plugins=("One", *active))
    hooks = Hooks(discover(map(_entry, ("One", *active, *installed))))
    return hooks.flavor(vm.pod, vm.config, vm.image)


def test_each_plugin_gets_what_the_one_before_made_in_the_order_of_the_profile(
    tmp_path: Path,
) -> None:
    assert _flavor(tmp_path, "Adds", "Content", "Doubles").vcpus == 4
    assert _flavor(tmp_path, "Doubles", "Content", "Adds").vcpus == 3


def test_a_plugin_that_the_handler_does_not_name_adjusts_nothing(tmp_path: Path) -> None:
    assert _flavor(tmp_path, "Adds", installed=("Doubles",)).vcpus == 2


@pytest.mark.parametrize(
    ("plugin", "problem"),
    [
        ("Raises", r"raised ValueError \(adjusting_plugins.py, line"),
        ("WrongType", "returned a dict instead of Flavor"),
        ("Spoils", "made a Flavor whose vcpus is a str instead of int"),
    ],
)
def test_who_adjusts_badly_is_named_alone(tmp_path: Path, plugin: str, problem: str) -> None:
    with pytest.raises(PluginError, match=problem) as caught:
        _flavor(tmp_path, "Adds", plugin)
    assert (caught.value.plugin, caught.value.hook) == (plugin, "virtlet_adjust_flavor")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("plugin", ["Raises", "WrongType", "Spoils"])
def test_an_operator_may_do_without_an_adjustment_that_fails(tmp_path: Path, plugin: str) -> None:
    vm = models.vm(tmp_path, plugins=("One", plugin, "Adds"))
    hooks = Hooks(discover(map(_entry, ("One", plugin, "Adds"))))
    hooks.govern({plugin: {"onFailure": "log"}}, tmp_path)
    assert hooks.flavor(vm.pod, vm.config, vm.image).vcpus == 2


def test_an_adjustment_that_is_passed_over_leaves_nothing_behind(tmp_path: Path) -> None:
    """Also where the plugin changed what it was given before it failed."""
    vm = models.vm(tmp_path, plugins=("One", "Meddles", "Adds"))
    hooks = Hooks(discover(map(_entry, ("One", "Meddles", "Adds"))))
    hooks.govern({"Meddles": {"onFailure": "log"}}, tmp_path)
    assert hooks.flavor(vm.pod, vm.config, vm.image) == Flavor(vcpus=2)


def _adjusted(directory: Path, nic: dict[str, Any], network: dict[str, Any]) -> Network:
    registry = discover(map(_entry, ("One", "Told")))
    told = registry.manager.get_plugin("Told")
    assert isinstance(told, Told)
    told.nic, told.network = nic, network
    hooks, pod = Hooks(registry), models.pod(directory, plugins=("One", "Told"))
    made = hooks.setup_network("One", pod)
    assert made is not None
    return hooks.adjust_network(pod, made)


def test_what_a_guest_is_told_of_a_network_can_be_changed(tmp_path: Path) -> None:
    nic = {
        "mac": "52:54:00:12:34:56",
        "mtu": 1300,
        "addresses": ("10.0.0.7/24", "fd00::7/64"),
        "routes": (Route(destination="0.0.0.0/0", gateway="10.0.0.1"),),
        "queues": 4,
        "boot_order": 1,
    }
    dns = DnsConfig(servers=("10.0.0.53",))
    network = _adjusted(tmp_path, nic, {"dns": dns})
    assert network.nics[0] == Nic(name="eth0", **nic)  # type: ignore[arg-type]
    assert network.nics[1].mac == SECOND
    assert network.dns == dns


@pytest.mark.parametrize(
    ("nic", "network", "problem"),
    [
        ({}, {"netns": Path("/run/netns/x")}, "changed netns, which is left to the plugin that"),
        ({}, {"details": "mine"}, "changed details, which"),
        ({}, {"nics": ()}, "changed the number of nics, which"),
        ({"name": "net1"}, {}, r"changed nics\[0\].name, which"),
        ({"kind": "hostdev"}, {}, r"changed nics\[0\].kind, which"),
        ({"device": "tap9"}, {}, r"changed nics\[0\].device, which"),
        ({"mac": "02:00:00:00:00:AA"}, {}, r"nics\[0\].mac is not a unicast MAC address in lower"),
        ({"mac": "01:00:5e:00:00:01"}, {}, "is not a unicast MAC address"),
        ({"mac": f"{FIRST},x=y"}, {}, "is not a unicast MAC address"),
        ({"mac": SECOND}, {}, "nics have one MAC address twice"),
        ({"mtu": 67}, {}, r"nics\[0\].mtu is below 68"),
        ({"queues": 0}, {}, r"nics\[0\].queues is below 1"),
        ({"boot_order": -1}, {}, r"nics\[0\].boot_order is below 0"),
        ({"addresses": ("10.0.0.300/24",)}, {}, r"nics\[0\].addresses has one that is not in CIDR"),
        ({"mtu": 65536}, {}, r"nics\[0\].mtu is above 65535"),
        ({"queues": 257}, {}, r"nics\[0\].queues is above 256"),
        ({"addresses": ("10.0.0.3",)}, {}, "addresses has one that is not in CIDR"),
        ({"addresses": ("fe80::1%x } drop/64",)}, {}, "addresses has one that is not in CIDR"),
        ({"routes": (Route(destination="::/0", gateway="10.0.0.1"),)}, {}, "routes has one whose"),
        ({}, {"dns": DnsConfig(servers=("dns.example",))}, "dns has a server or search domain"),
        (
            {},
            {"dns": DnsConfig(searches=("a\nconf-file=/x",))},
            "dns has a server or search domain",
        ),
        ({"routes": (Route(destination="10.0.0.1/24"),)}, {}, r"nics\[0\].routes has one whose"),
        ({"routes": (Route(destination="0.0.0.0/0", gateway="x"),)}, {}, "routes has one whose"),
    ],
)
def test_what_would_undo_or_connect_nothing_is_refused_by_name(
    tmp_path: Path, nic: dict[str, Any], network: dict[str, Any], problem: str
) -> None:
    with pytest.raises(PluginError, match=problem) as caught:
        _adjusted(tmp_path, nic, network)
    assert (caught.value.plugin, caught.value.hook) == ("Told", "virtlet_adjust_network")


def test_a_network_that_nobody_could_work_with_is_its_makers_fault(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"nics\[0\].mac is not a unicast") as caught:
        Hooks(discover([_entry("Shouts")])).setup_network("Shouts", models.pod(tmp_path))
    assert (caught.value.plugin, caught.value.hook) == ("Shouts", "virtlet_setup_network")
