"""Inside of the machine that test_igb.py emulates: a virtual function is a pod's, a VM's, and back.

It prints what it sees at each step, as lines of `igb: JSON`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from attrs import evolve

from virtlet.host import netns
from virtlet.host.links import Link, Links
from virtlet.host.pci import PciDevice
from virtlet.model.network import Network
from virtlet.plugins.network_cni import bridging, guest_view
from virtlet.plugins.network_cni.cni_result import parse
from virtlet.plugins.network_cni.passed_nics import Hardware

_POD = Path("/run/pod")
_VLAN = 42
"""Of the function, as the SR-IOV plugin tells the card."""
_PATIENCE = 60.0
"""Seconds that drivers may take for an interface; an emulated machine is slow."""


def main() -> None:
    (card,) = hardware()
    Path("/sys/bus/pci/devices", card.pci, "sriov_numvfs").write_text("2")
    with Links() as net:
        net.set(card.name, up=True)
    deadline = time.monotonic() + _PATIENCE
    while len(found := [link for link in hardware() if PciDevice(link.pci).physical]) < 2:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    function = found[0]
    device = PciDevice(function.pci)
    ip("link", "set", card.name, "vf", str(device.number), "vlan", str(_VLAN))
    tell("node", card, device)
    netns.create(_POD)
    with Links() as net:
        net.move(function.name, _POD, "net1")
    netns.inside(_POD, lambda: configure(function.name))
    network = seen_by_guest()
    for mac in (network.nics[0].mac, "02:00:00:00:00:77"):
        wanted = evolve(network, nics=(evolve(network.nics[0], mac=mac),))
        node = Hardware()
        lent = node.plan(netns.inside(_POD, bridging.read_sandbox), wanted)
        node.lend(lent, wanted)
        part = node.launch_part(wanted, Path("/run"), os.getuid(), os.getgid())
        assert part is not None
        shown = sorted(str(item.path) for item in part.visible)
        tell("lent", card, device, mac=mac, shown=shown)
        for _ in range(2):
            node.give_back(lent, _POD)
        tell("back", card, device, mac=function.mac)


def ip(*words: str) -> str:
    """What ip(8) prints."""
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def vlans(card: Link) -> dict[int, int]:
    """The VLANs that the card has for its virtual functions, by number."""
    (shown,) = json.loads(ip("-json", "link", "show", "dev", card.name))
    return {vf["vf"]: vf["vlan_list"][0].get("vlan", 0) for vf in shown["vfinfo_list"]}


def hardware() -> list[Link]:
    """The node's interfaces of PCI devices."""
    with Links() as net:
        return [link for link in net.show() if link.pci]


def configure(alias: str) -> None:
    """What CNI's plugins do in the pod."""
    with Links() as net:
        net.set("net1", up=True, alias=alias)
        net.add_address("net1", "10.98.0.2/24")
        net.set_route("10.97.0.0/16", "net1", gateway="10.98.0.1")


def seen_by_guest() -> Network:
    """The pod's one NIC."""
    told = {"interfaces": [{"name": "net1", "sandbox": str(_POD)}]}
    result = parse(told, "1.0.0")
    sandbox = netns.inside(_POD, bridging.read_sandbox)
    links = guest_view.links(sandbox, result, hardware=True)
    return Network(netns=_POD, nics=guest_view.nics(sandbox, result, links, 24))


def tell(step: str, card: Link, device: PciDevice, **more: Any) -> None:
    """Print what there is now."""
    with Links() as net:
        macs = net.function_macs(card.name)
    pod = netns.inside(_POD, bridging.read_sandbox) if netns.exists(_POD) else None
    facts = {
        "step": step,
        "device": device.address,
        "driver": [device.driver.name, device.driver.override],
        "group": device.group,
        "function_mac": macs[device.number or 0],
        "function_vlan": vlans(card).get(device.number or 0),
        "node": [link.name for link in hardware()],
        "pod": [
            [link.name, link.mac, link.alias, *link.addresses] for link in pod.links if link.pci
        ]
        if pod
        else [],
        "routes": [r.destination for r in pod.routes if not r.automatic] if pod else [],
        **more,
    }
    sys.stdout.write(f"igb: {json.dumps(facts)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
