"""Linux and its own drivers for a card's virtual functions, in an emulated machine with an IOMMU.

QEMU's igb is the card, Debian's kernel with igb, igbvf and vfio-pci the node. No VM runs there: an
emulator within an emulated machine would take hours.
"""

import json
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import ROOT

_FIRST, _SIZE = 1, 63
"""Where the image's boot partition is, in MiB; see images/debian."""
_LIMIT = 480
"""Seconds; a minute and a half on a loaded machine without KVM."""
pytestmark = pytest.mark.timeout(600)


def boots(directory: Path, image: Path) -> list[dict[str, Any]]:
    """What the program within the machine tells, step by step."""
    partition = directory / "boot"
    cut = [f"bs={1 << 20}", f"skip={_FIRST}", f"count={_FIRST + _SIZE}"]
    source = [f"if={image}", f"of={partition}"]
    subprocess.run(["qemu-img", "dd", "-O", "raw", *cut, *source], check=True)
    for name in ("vmlinuz", "initrd.img"):
        subprocess.run(["mcopy", "-i", partition, f"::/{name}", directory / name], check=True)
    shares = {"src": ROOT, "site": sysconfig.get_path("purelib")}
    mount = "mount -t 9p -o trans=virtio,version=9p2000.L,ro src /mnt"
    command = f"modprobe 9pnet_virtio; {mount}; sh /mnt/tests/e2e/igb_node.sh"
    # A loaded machine misses the ticks by which Linux looks whether its timer works.
    options = "root=LABEL=root rw console=ttyS0 intel_iommu=on no_timer_check panic=-1 quiet"
    argv = [
        *("qemu-system-x86_64", "-machine", "q35,kernel-irqchip=split", "-accel", "tcg"),
        *("-m", "1024", "-nographic", "-no-reboot", "-snapshot"),
        *("-device", "intel-iommu,intremap=on"),
        *("-drive", f"file={image},if=virtio"),
        *("-kernel", str(directory / "vmlinuz"), "-initrd", str(directory / "initrd.img")),
        *("-append", f'{options} init=/bin/sh -- -c "{command}"'),
        *("-nic", "none", "-netdev", "user,id=wire"),
        *("-device", "pcie-root-port,id=port1,chassis=1", "-device", "igb,bus=port1,netdev=wire"),
    ]
    for tag, path in shares.items():
        share = f"local,path={path},mount_tag={tag},security_model=none,readonly=on"
        argv += ("-virtfs", share)
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIMIT, check=True
    )
    lines = done.stdout.decode(errors="replace").splitlines()
    told = [json.loads(line.partition("igb: ")[2]) for line in lines if "igb: {" in line]
    assert len(told) == 5, "\n".join(lines[-40:])
    return told


def test_a_virtual_function_goes_to_vfio_and_comes_back(debian_image: Path, tmp_path: Path) -> None:
    """With a MAC address of its own choice and with another, in its VLAN; each time all is as
    before."""
    node, *steps = boots(tmp_path, debian_image)
    assert node["driver"] == ["igbvf", ""]
    assert node["function_mac"] == "00:00:00:00:00:00"
    assert [step["function_vlan"] for step in (node, *steps)] == [42] * 5
    _, name, other = node["node"]
    for lent, back in (steps[:2], steps[2:]):
        assert lent["driver"] == ["vfio-pci", "vfio-pci"]
        assert lent["function_mac"] == lent["mac"]
        assert (lent["pod"], other in lent["node"]) == ([], True)
        assert {"/dev/vfio/vfio", f"/dev/vfio/{node['group']}"} <= set(lent["shown"])
        assert f"/sys/bus/pci/devices/{node['device']}" in lent["shown"]
        assert back["driver"] == ["igbvf", ""]
        # The card's choice again; it knows the driver's own address where it heard of it in time.
        assert back["function_mac"] in ("00:00:00:00:00:00", back["mac"])
        assert back["pod"] == [["net1", back["mac"], name, "10.98.0.2/24"]]
        assert back["routes"] == ["10.97.0.0/16"]
