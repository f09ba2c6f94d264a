"""NICs that are PCI devices: a card's virtual functions, in a tree of files and real namespaces.

Debian's host-device plugin gives them to pods, as the SR-IOV plugin does.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.devices import FakeKernel, Tree
from tests.fakes.links import names
from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.errors import FailedPrecondition
from virtlet.host import links, netns, pci
from virtlet.host.links import Links
from virtlet.model.network import Network
from virtlet.model.vm import Machine
from virtlet.plugins.cloudinit.datasources import network_config
from virtlet.plugins.network_cni.passed_nics import Hardware
from virtlet.testing import make_machine, rendered


@pytest.fixture
def kernel(node: TestNode, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    """A card with two virtual functions; all plugins of the node can pass them."""
    tree = Tree(node.root)
    tree.node("vfio")
    kernel = FakeKernel(tree, node.node().run_dir / "netns")
    kernel.card(2)
    monkeypatch.setattr(pci, "write", kernel.write)
    monkeypatch.setattr(Links, "function_macs", lambda _, name: kernel.function_macs(name))
    monkeypatch.setattr(
        Links, "set_function_mac", lambda _, *arguments: kernel.set_function_mac(*arguments)
    )
    really = links._link
    monkeypatch.setattr(links, "_link", lambda *entry: kernel.told(really(*entry)))
    node.hardware = Hardware(tree.nodes, tree.system)
    return kernel


@pytest.fixture
def clean(node: TestNode, kernel: FakeKernel) -> Iterator[None]:
    """After the test both functions are the node's again, as they were."""
    yield
    assert [kernel.driver(number) for number in (0, 1)] == ["iavf", "iavf"]
    assert [kernel.override(number) for number in (0, 1)] == ["(null)", "(null)"]
    assert set(kernel.macs.values()) == {"00:00:00:00:00:00"}
    assert {"ens1v0", "ens1v1"} <= node.links()
    with Links() as net:
        for name in ("ens1v0", "ens1v1"):
            net.delete(name)
    assert node.leftovers() == []


def function(node: TestNode, number: int = 0) -> dict[str, Any]:
    """A network of a virtual function."""
    return {
        "type": "host-device",
        "device": f"ens1v{number}",
        "ipam": node.ipam("10.98.0.0/24", "10.97.0.0/16"),
    }


def machine_of(node: TestNode, network: Network, pod: Any) -> Machine:
    directory = node.root / "vm"
    directory.mkdir(exist_ok=True)
    return make_machine(directory, pod, network=network)


def test_a_virtual_function_is_the_guests_and_then_the_nodes_again(
    node: TestNode, kernel: FakeKernel, clean: None
) -> None:
    """With its MAC address; and its interface is as it was, where DEL looks for it."""
    node.configure(node.meta(node.bridge(), function(node)))
    plugin, pod = node.plugin(), node.pod()
    network = plugin.virtlet_setup_network(pod)
    assert kernel.log == []
    plugin.virtlet_serve_network(pod, network)
    eth0, net1 = network.nics
    assert (eth0.kind, net1.kind, net1.device) == ("tap", "vfio", kernel.function(0))
    assert net1.addresses == ("10.98.0.2/24",)
    assert kernel.log == [
        f"pf0 0 {net1.mac}",
        "driver_override vfio-pci",
        f"unbind {net1.device}",
        f"drivers_probe {net1.device}",
    ]
    assert (kernel.driver(0), kernel.driver(1)) == ("vfio-pci", "iavf")
    assert network.netns is not None
    assert "net1" not in netns.inside(network.netns, names)
    with node.guest(network) as guest:
        assert guest.dhcp()
    told = network_config(network)
    assert told is not None
    assert told["ethernets"]["net1"]["match"] == {"macaddress": net1.mac}
    assert told["ethernets"]["net1"]["addresses"] == ["10.98.0.2/24"]
    address = rendered(machine_of(node, network, pod)).find("devices/hostdev/source/address")
    assert address is not None
    assert address.attrib == {
        "domain": "0x0000",
        "bus": "0x3b",
        "slot": "0x02",
        "function": "0x0",
    }
    plugin.virtlet_teardown_network(pod, network)


def test_an_emulator_is_shown_the_group_by_a_node_of_the_vms_own(
    node: TestNode, kernel: FakeKernel, clean: None
) -> None:
    """At every launch; one that somebody has open, or that has another driver, is refused."""
    node.configure(function(node))
    plugin, pod, network = node.up()
    machine = machine_of(node, network, pod)
    group, own = kernel.tree.nodes / "50", machine.vm.directory / "nic-0"
    for _ in range(2):
        part = plugin.virtlet_launch(machine)
        assert part is not None
        assert {item.path for item in part.visible if item.writable} == {
            kernel.tree.nodes / "vfio",
            group,
        }
        assert {item.source for item in part.visible} == {None, own}
        assert own.stat().st_rdev == group.stat().st_rdev
    # Of the hardware alone, so that there is nobody to serve by DHCP.
    state = node.node().state_dir("network_cni") / "pods" / pod.id
    assert not (state / "dnsmasq.conf").exists()
    kernel.write(
        kernel.tree.system / "bus/pci/devices" / network.nics[0].device / "driver/unbind",
        network.nics[0].device,
    )
    with pytest.raises(FailedPrecondition, match="shared with 0000:3b:02.0, which has no driver"):
        plugin.virtlet_launch(machine)
    plugin.virtlet_teardown_network(pod, network)


@pytest.mark.parametrize("setting_up", [True, False])
@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
def test_whatever_a_killed_manager_had_changed_the_next_one_undoes(
    node: TestNode, kernel: FakeKernel, clean: None, fail_at: int, setting_up: bool
) -> None:
    """Before each write to the kernel, of setting up and of taking down; twice."""
    node.configure(node.meta(node.bridge(), function(node)))
    plugin, pod = node.plugin(), node.pod()
    kernel.fail_at = fail_at if setting_up else 0
    if setting_up:
        with pytest.raises(KeyboardInterrupt):
            set_up(plugin, pod)
    else:
        network = set_up(plugin, pod)
        kernel.log.clear()
        kernel.fail_at = fail_at
        with pytest.raises(KeyboardInterrupt):
            plugin.virtlet_teardown_network(pod, network)
    kernel.fail_at = 0
    for _ in range(2):
        node.plugin().virtlet_teardown_network(pod, None)


def test_a_mac_address_of_another_plugin_is_what_the_function_gets(
    node: TestNode, kernel: FakeKernel, clean: None
) -> None:
    node.configure(function(node))
    plugin, pod = node.plugin(), node.pod()
    network = set_up(plugin, pod, mac="02:00:00:00:00:07")
    assert kernel.macs[0] == "02:00:00:00:00:07"
    plugin.virtlet_teardown_network(pod, network)


def shared_group(kernel: FakeKernel) -> None:
    kernel.tree.pci("0000:3b:05.0", 50, "e1000e")


def group_of_two(kernel: FakeKernel) -> None:
    kernel.tree.pci("0000:3b:05.0", 50, "vfio-pci")


def no_iommu(kernel: FakeKernel) -> None:
    (kernel.tree.system / "bus/pci/devices" / kernel.function(0) / "iommu_group").unlink()


def gone(kernel: FakeKernel) -> None:
    (kernel.tree.system / "bus/pci/devices" / kernel.function(0)).unlink()


def functions_of_its_own(kernel: FakeKernel) -> None:
    device = kernel.tree.system / "bus/pci/devices" / kernel.function(0)
    (device / "sriov_numvfs").write_text("2\n")


def silent_card(kernel: FakeKernel) -> None:
    card = kernel.tree.system / "bus/pci/devices" / kernel.PHYSICAL
    (card / "net/pf0").rmdir()


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (
            shared_group,
            "/50: its IOMMU group is shared with 0000:3b:05.0, which has the driver e10",
        ),
        (group_of_two, "0000:3b:02.0 of NIC net1 shares its IOMMU group with 0000:3b:05.0"),
        (no_iommu, "0000:3b:02.0 is in no IOMMU group.*turn the IOMMU on"),
        (gone, "PCI device 0000:3b:02.0 of NIC net1 is gone"),
        (functions_of_its_own, "NIC net1 .* has virtual functions that would go with it"),
        (silent_card, "NIC net1 is a virtual function of 0000:3b:00.0, which has no interface"),
    ],
)
def test_a_device_that_cannot_be_the_guests_alone_is_refused_before_anything_is_changed(
    node: TestNode, kernel: FakeKernel, broken: Any, problem: str
) -> None:
    node.configure(node.meta(node.bridge(), function(node)))
    plugin, pod = node.plugin(), node.pod()
    network = plugin.virtlet_setup_network(pod)
    broken(kernel)
    with pytest.raises(FailedPrecondition, match=problem):
        plugin.virtlet_serve_network(pod, network)
    assert kernel.log == []
    assert netns.inside(node.node().run_dir / "netns" / pod.id, names) == ["lo", "eth0", "net1"]
    plugin.virtlet_teardown_network(pod, network)
    assert kernel.log == []
    assert {"ens1v0", "ens1v1"} <= node.links()


def test_a_node_without_the_driver_for_it_says_so(
    node: TestNode, kernel: FakeKernel, clean: None
) -> None:
    (kernel.tree.system / "bus/pci/drivers/vfio-pci").rmdir()
    node.configure(function(node))
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(FailedPrecondition, match="modprobe vfio-pci"):
        set_up(plugin, pod)
    plugin.virtlet_teardown_network(pod, None)


def have_open(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says that somebody has a group open; here something says it in its place."""
    taken, really = str(group), os.open

    def refusing(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path) == taken:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return really(path, *arguments, **more)

    monkeypatch.setattr(os, "open", refusing)


@pytest.mark.parametrize("early", [True, False])
def test_a_function_that_somebody_has_open_is_refused(
    node: TestNode,
    kernel: FakeKernel,
    clean: None,
    monkeypatch: pytest.MonkeyPatch,
    early: bool,
) -> None:
    """Before anything is changed, or, where the group has no node until it is lent, right then."""
    group = kernel.tree.nodes / "50"
    have_open(group, monkeypatch)
    if not early:
        really = kernel.write

        def writing(path: Path, text: str) -> None:
            really(path, text)
            kernel.tree.node("50")

        group.unlink()
        monkeypatch.setattr(pci, "write", writing)
    node.configure(function(node))
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(FailedPrecondition, match="/50 is in use elsewhere on the node"):
        set_up(plugin, pod)
    assert (kernel.log == []) is early
    plugin.virtlet_teardown_network(pod, None)


def bound_already(node: TestNode, kernel: FakeKernel) -> str:
    """A network of a function that a device plugin gave vfio-pci to; returns its MAC address."""
    address = kernel.function(1)
    device = kernel.tree.system / "bus/pci/devices" / address
    kernel.write(device / "driver_override", "vfio-pci")
    kernel.write(device / "driver/unbind", address)
    kernel.write(kernel.tree.system / "bus/pci/drivers_probe", address)
    kernel.log.clear()
    mac = "02:00:00:00:00:09"
    result = {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/pod", "mac": mac, "pciID": address}],
        "ips": [{"address": "10.98.0.9/24", "interface": 0}],
    }
    node.configure(node.fake(ADD={"print": result}), cniVersion="1.1.0")
    return mac


def test_one_that_has_vfio_pci_already_and_is_another_vms_is_refused_at_once(
    node: TestNode, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound_already(node, kernel)
    plugin, pod = node.plugin(), node.pod()
    network = plugin.virtlet_setup_network(pod)
    have_open(kernel.tree.nodes / "51", monkeypatch)
    with pytest.raises(FailedPrecondition, match="/51 is in use elsewhere on the node"):
        plugin.virtlet_serve_network(pod, network)
    plugin.virtlet_teardown_network(pod, network)
    assert kernel.log == []


def test_a_function_that_has_vfio_pci_already_is_taken_as_it_comes(
    node: TestNode, kernel: FakeKernel
) -> None:
    """CNI's result names it and its MAC address; its driver is a device plugin's affair."""
    mac = bound_already(node, kernel)
    plugin, pod, network = node.up()
    (nic,) = network.nics
    assert (nic.kind, nic.device, nic.mac) == ("vfio", kernel.function(1), mac)
    assert nic.addresses == ("10.98.0.9/24",)
    assert plugin.virtlet_launch(machine_of(node, network, pod)) is not None
    plugin.virtlet_teardown_network(pod, network)
    assert kernel.log == []
    assert kernel.driver(1) == "vfio-pci"


def test_without_the_setting_no_pod_has_hardware(
    node: TestNode, kernel: FakeKernel, clean: None
) -> None:
    node.configure(function(node))
    hardware, node.hardware = node.hardware, None
    plugin, pod = node.plugin(), node.pod()
    with pytest.raises(FailedPrecondition, match="0000:3b:02.0: .* enableSriov is true"):
        set_up(plugin, pod)
    plugin.virtlet_teardown_network(pod, None)
    node.hardware = hardware
