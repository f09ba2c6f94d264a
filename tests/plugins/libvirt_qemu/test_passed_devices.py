"""Documents of what this machine lacks, defined and translated by a real libvirt.

No device is needed for that: a domain that is not started touches none.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest
import yaml
from attrs import evolve

from tests.e2e.test_example_pods import EXAMPLES, NOT_HERE
from tests.fakes.devices import Tree
from tests.fakes.kubelet.volumes import Example
from tests.fakes.model import make_config, make_node
from tests.host.test_cdi import write
from tests.plugins.devices.test_devices import GPU, RESOURCE, SOUND, VGPU
from tests.plugins.domain_xml.test_render import all_machines
from tests.plugins.flavors.test_named import serves
from tests.plugins.libvirt_qemu.rig import Rig
from virtlet.core.cri.requests import pod_config, vm_config
from virtlet.errors import VirtletError
from virtlet.host.cdi import resolve
from virtlet.model.disk import Volume
from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import Machine, VolumeRequest
from virtlet.plugins.devices.plugin import Plugin
from virtlet.plugins.libvirt_qemu.domains import written


@contextmanager
def _defined(rig: Rig, machine: Machine) -> Iterator[Any]:
    """A machine's document, put before libvirt's schema and its checks, and kept by it."""
    hypervisor: Any = rig.hypervisor
    document = written(rig.document(machine))
    with hypervisor._domains.call("look") as connection:
        domain = connection.defineXMLFlags(document, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        try:
            yield domain
        finally:
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)


def _emulators(domain: Any) -> tuple[list[str], list[dict[str, Any]]]:
    """The words that libvirt would start the VM's emulator with, and the devices among them."""
    words = domain.connect().domainXMLToNative("qemu-argv", domain.XMLDesc(), 0)
    words = words.replace("'", "").split()
    return words, [json.loads(word) for word in words if word.startswith('{"driver":')]


@pytest.mark.parametrize("name", ["devices-plain", "devices-placed"])
def test_passed_devices_are_defined_and_handed_to_the_emulator(rig: Rig, name: str) -> None:
    """With and without their ROMs; those of a memory node below its bus; room for their memory."""
    golden, machine = all_machines()[name], rig.machine()
    config = evolve(machine.vm.config, resources=golden.vm.config.resources)
    vm = evolve(machine.vm, config=config)
    machine = evolve(machine, vm=vm, volumes=golden.volumes, flavor=golden.flavor)
    with _defined(rig, machine) as domain:
        words, devices = _emulators(domain)
    passed = [device for device in devices if device["driver"] == "vfio-pci"]
    assert [device.get("host") or device["sysfsdev"] for device in passed] == [
        GPU,
        SOUND,
        f"/sys/bus/mdev/devices/{VGPU}",
    ]
    assert "q35-pcihost.pci-hole64-size=268435456K" in words
    placed = golden.flavor.numa
    assert [device.get("rombar") for device in passed] == ([0, 0, None] if placed else [None] * 3)
    expanders = {
        device["id"]: device["numa_node"] for device in devices if device["driver"] == "pxb-pcie"
    }
    ports = {
        device["id"]: expanders.get(device["bus"])
        for device in devices
        if device["driver"] == "pcie-root-port"
    }
    nodes = [ports[device["bus"]] for device in passed]
    # The guest has memory of node 0 alone, and the mediated device is on node 1.
    assert nodes == ([0, 0, None] if placed else [None] * 3)


def test_a_cdi_device_is_the_emulators(rig: Rig, tmp_path: Path) -> None:
    """From the name that a device plugin or claim gives, by its spec and sysfs, to QEMU."""
    tree = Tree(tmp_path)
    tree.node("vfio")
    tree.pci(GPU, 7, "vfio-pci", resource=RESOURCE)
    tree.mdev(tree.pci("0000:b3:00.0", 9, "nvidia"), VGPU, 12)
    plugin = Plugin(tree.nodes, tree.system)
    plugin.virtlet_configure(make_config(()), make_node(tmp_path))
    write(tmp_path, "gpu", deviceNodes=[{"path": str(tree.nodes / name)} for name in ("vfio", "7")])
    write(tmp_path, "vgpu", "vendor.com/vgpu", deviceNodes=[{"path": str(tree.nodes / "12")}])
    machine = rig.machine()
    volumes: tuple[Volume, ...] = ()
    devices = resolve(["vendor.com/gpu=0", "vendor.com/vgpu=0"], [tmp_path]).devices
    for number, device in enumerate(devices):
        request = VolumeRequest(role=f"volume-{number}", source=device)
        volume = plugin.virtlet_volume(machine.vm, request)
        assert volume is not None
        volumes += (volume,)
    with _defined(rig, evolve(machine, volumes=volumes)) as domain:
        given = _emulators(domain)[1]
    assert [
        device.get("host") or device["sysfsdev"]
        for device in given
        if device["driver"] == "vfio-pci"
    ] == [GPU, f"/sys/bus/mdev/devices/{VGPU}"]


def test_a_start_without_the_device_fails_and_leaves_nothing_running(rig: Rig) -> None:
    """QEMU names the device; where its memory cannot be locked, libvirt says that first."""
    golden, machine = all_machines()["devices-plain"], rig.machine()
    machine = evolve(machine, volumes=golden.volumes[:1])
    try:
        rig.define(machine)
        with pytest.raises(VirtletError, match=f"did not start.*({GPU}|cannot limit locked)"):
            rig.start(machine)
        assert rig.hypervisor.list()[machine.vm.id].state is not DomainState.RUNNING
    finally:
        rig.hypervisor.remove(machine.vm.id)


@pytest.mark.parametrize("locked", [True, False])
def test_locked_memory_is_asked_of_the_emulator(rig: Rig, locked: bool) -> None:
    machine = rig.machine()
    machine = evolve(machine, flavor=evolve(machine.flavor, lock_memory=locked))
    with _defined(rig, machine) as domain:
        assert f"mem-lock={'on' if locked else 'off'}" in _emulators(domain)[0]


@pytest.mark.parametrize("wanted", [True, False])
def test_a_guest_has_vsock_only_where_its_flavor_says_so(rig: Rig, wanted: bool) -> None:
    """Its address is left to the start: the kernel gives one to whom it gave none."""
    machine = rig.machine()
    machine = evolve(machine, flavor=evolve(machine.flavor, vsock=wanted))
    with _defined(rig, machine) as domain:
        kept = ElementTree.fromstring(domain.XMLDesc()).findall("devices/vsock/cid")
        assert [dict(cid.attrib) for cid in kept] == [{"auto": "yes"}] * wanted
        devices = [device["driver"] for device in _emulators(domain)[1]]
    assert ("vhost-vsock-pci" in devices) is wanted


@pytest.mark.parametrize(
    ("name", "word"), [*zip(NOT_HERE, ("mem-lock=on", "vhost-vsock-pci"), strict=True)]
)
def test_an_example_that_is_not_run_here_is_defined(
    rig: Rig, tmp_path: Path, name: str, word: str
) -> None:
    """From the manifest by its flavor to the emulator's words."""
    example = Example.read(EXAMPLES / f"{name}.yaml", name)
    manifest, machine = example.manifest(tmp_path), rig.machine()
    (tmp_path / "flavors").mkdir()
    for document in example.objects.values():
        (tmp_path / "flavors/own.yaml").write_text(yaml.safe_dump(document))
    pod = evolve(machine.vm.pod, config=pod_config(manifest.pod))
    with serves(tmp_path / "flavors") as plugin:
        section = plugin.virtlet_pod_flavor(pod)
        assert section is not None
        pod = evolve(pod, profile=evolve(pod.profile, flavor=section))
        plugin.virtlet_admit_pod(pod)
        config = vm_config(manifest.container)
        chosen = plugin.virtlet_flavor(pod, config, machine.vm.image)
    assert chosen is not None
    machine = evolve(machine, vm=evolve(machine.vm, pod=pod, config=config), flavor=chosen)
    with _defined(rig, machine) as domain:
        words, devices = _emulators(domain)
    assert "size=327680k" in words
    assert word in (*words, *(device["driver"] for device in devices))
