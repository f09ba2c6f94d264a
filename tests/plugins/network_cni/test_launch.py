"""What is looked at before a VM starts in a network, and the NICs that its emulator gets."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes import models
from tests.plugins.network_cni.conftest import TestNode, set_up
from virtlet.errors import FailedPrecondition, PodBroken
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.model.disk import Disk
from virtlet.model.flavor import Flavor
from virtlet.model.launch import LaunchPart
from virtlet.model.network import Network, Nic
from virtlet.model.pod import Pod
from virtlet.model.vm import Console, Machine, Vm
from virtlet.plugins.libvirt_qemu import nics


def machine(
    directory: Path, network: Network, kind: str = "q35", pod: Pod | None = None
) -> Machine:
    made = models.vm(directory)
    vm = Vm(
        id=made.id,
        pod=pod or made.pod,
        config=made.config,
        image=made.image,
        network=network,
        directory=made.directory,
        created_at=1,
    )
    root = Disk(path=directory / "root", format="qcow2")
    console = Console(output=directory / "console.out", input=directory / "console.in")
    flavor = Flavor(machine=kind)
    return Machine(
        vm=vm,
        flavor=flavor,
        root=root,
        volumes=(),
        seed=None,
        console=console,
        accelerator="qemu",
        vmwrapper=Path("/bin/false"),
    )


def close(part: LaunchPart) -> None:
    """What the core does once a launch is over."""
    for item in part.fds:
        os.close(item.fd)


def emulator_says(part: LaunchPart, kind: str, question: str) -> str:
    """Start QEMU with what the plugin contributes, as vmwrapper would, and ask its monitor."""
    numbers = {f"{{fd:{fd.name}}}": str(fd.fd) for fd in part.fds}
    arguments = [
        re.sub(r"\{fd:\w+\}", lambda match: numbers[match.group()], argument)
        for argument in part.arguments
    ]
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-machine", kind, "-accel", "tcg", "-S", "-nodefaults"),
            *("-display", "none", "-monitor", "stdio", *arguments),
        ],
        input=f"{question}\nquit\n",
        capture_output=True,
        text=True,
        pass_fds=[fd.fd for fd in part.fds],
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["q35", "pc"])
def test_emulator_takes_the_nics(node: TestNode, kind: str) -> None:
    """QEMU starts with the taps' descriptors, and the NIC has MAC and slot as asked."""
    node.configure(node.bridge(mtu=1400))
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    made = machine(node.root, network, kind, pod)
    assert plugin.virtlet_launch(made) is None
    part = nics.launch_part(made)
    for open_it in (plugin.virtlet_launch, nics.launch_part):
        with pytest.raises(FailedPrecondition, match="tap vtap0: another process holds it"):
            open_it(made)
    told = emulator_says(part, kind, "info network\ninfo pci")
    assert f"model=virtio-net-pci,macaddr={network.nics[0].mac}" in told
    assert "Bus  0, device  16, function 0:" in told
    close(part)
    close(nics.launch_part(made))
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_emulator_takes_several_queues_of_a_nic_and_boots_from_it(node: TestNode) -> None:
    """A tap of the node's own namespace, with a descriptor for each queue."""
    with Links() as net:
        net.add_tap("queues0", multi_queue=True)
    nic = Nic(
        name="eth0", mac="02:00:00:00:00:01", mtu=1500, device="queues0", queues=2, boot_order=1
    )
    part = nics.launch_part(machine(node.root, Network(netns=None, nics=(nic,))))
    assert [fd.name for fd in part.fds] == ["tap0", "tap1"]
    told = emulator_says(part, "q35", "info network\ninfo qtree")
    assert told.count("type=tap") == 2
    assert "mq = true" in told
    assert part.arguments[3].endswith(",bootindex=1")
    close(part)
    with Links() as net:
        net.delete("queues0")


def test_emulator_takes_several_queues_of_a_pods_nic(node: TestNode) -> None:
    """The tap is made for as many as the NIC has in the end."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod, queues=2)
    made = machine(node.root, network, pod=pod)
    assert plugin.virtlet_launch(made) is None
    part = nics.launch_part(made)
    assert emulator_says(part, "q35", "info network").count("type=tap") == 2
    close(part)
    plugin.virtlet_teardown_network(pod, network)
    assert node.leftovers() == []


def test_a_nic_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    nic = Nic(name="net1", mac="02:00:00:00:00:01", mtu=1500, kind="hostdev", device="0000:01:00.0")
    with pytest.raises(FailedPrecondition, match="NIC net1 is of kind 'hostdev'"):
        nics.launch_part(machine(tmp_path, Network(netns=None, nics=(nic,))))


def test_networks_of_others(node: TestNode) -> None:
    """A network that another plugin made is left to it."""
    network = Network(netns=None, nics=(Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500),))
    assert node.plugin().virtlet_launch(machine(node.root, network, pod=node.pod())) is None


def test_a_network_of_the_release_that_marked_them(node: TestNode) -> None:
    """It is known by its notes, which say less of its NICs, and checked and served as ever."""
    node.configure(node.bridge())
    first = node.plugin()
    pod = node.pod()
    network = evolve(set_up(first, pod), details='{"made_by": "network_cni"}')
    node.end(first)
    notes = first.networks.store.directory(pod.id) / "state.json"
    state = json.loads(notes.read_text())
    for nic in state["nics"]:
        del nic["guest_mac"], nic["queues"]
    notes.write_text(json.dumps(state))
    plugin = node.plugin()
    for _ in range(2):
        assert plugin.virtlet_launch(machine(node.root, network, pod=pod)) is None
    with node.guest(network) as guest:
        assert guest.dhcp()
        assert guest.reaches("10.99.0.1")
    assert network.netns is not None
    netns.delete(network.netns)
    with pytest.raises(PodBroken, match="is gone"):
        plugin.virtlet_launch(machine(node.root, network, pod=pod))
    plugin.virtlet_teardown_network(pod, network)


def test_namespace_is_gone(node: TestNode) -> None:
    """A pod without its namespace is of no use any more."""
    node.configure(node.bridge())
    plugin = node.plugin()
    pod = node.pod()
    network = set_up(plugin, pod)
    assert network.netns is not None
    netns.delete(network.netns)
    with pytest.raises(PodBroken, match="is gone: the pod is stopped; run it again"):
        plugin.virtlet_launch(machine(node.root, network, pod=pod))
    plugin.virtlet_teardown_network(pod, network)
