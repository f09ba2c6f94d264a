"""Machines that boot without a boot loader, end where others boot again, or cannot be."""

import subprocess
from collections.abc import Iterator

import pytest
import yaml

from tests.e2e.conftest import AS_THE_UNIT, ROOT, TINY, Pod, make_manifest
from tests.fakes import kubelet
from tests.fakes.kubelet import volumes
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    directory = tmp_path_factory.mktemp("kernel")
    disk = directory / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(TINY), str(disk)], check=True)
    for name in ("vmlinuz", "initrd.img"):
        subprocess.run(["mcopy", "-i", f"{disk}@@1M", f"::/{name}", directory / name], check=True)
        (directory / name).chmod(0o644)
    options = "console=ttyS0,115200 panic=10 audit=0 cryptomgr.notests said.by=flavor"
    machines = {
        "direct": {
            "kernel": str(directory / "vmlinuz"),
            "initrd": str(directory / "initrd.img"),
            "kernel_args": options,
            "on_reboot": "end",
            "rng": False,
            "sound": "ich9",
        },
        "unknown": {"cpu_model": "Pentium5"},
        "odd": {"machine": "warp"},
        "lacking": {"cpu_features": {"amx-tile": "require"}},
    }
    settings = {"handlers": {name: {"flavor": flavor} for name, flavor in machines.items()}}
    with Playground(
        {"tiny": TINY}, subnet="10.141.0.0/16", settings=settings, wrapper=AS_THE_UNIT
    ) as node:
        yield node


def test_a_kernel_of_the_node_is_started_and_a_reboot_is_the_end(node: Playground) -> None:
    pod = Pod(node, node.client(), make_manifest(node, "direct", "direct")).up()
    pod.wait_for_console("login:")
    assert "said.by=flavor" in pod.console()
    pod.leave("reboot")
    until(lambda: pod.status.state == cri.CONTAINER_EXITED, "the end of the VM", 60)
    assert (pod.status.exit_code, pod.status.reason) == (0, "Completed")
    pod.down()
    assert node.settled_leftovers() == []


def test_a_machine_has_the_hardware_that_its_flavor_names(node: Playground) -> None:
    """Of the example: i6300esb, ICH9's sound, xHCI with a tablet, and a CPU with what it takes."""
    example = volumes.Example.read(ROOT / "examples/pods/hardware.yaml", "hardware")
    flavors = node.directory / "flavors"
    flavors.mkdir(exist_ok=True)
    for (_, name), document in example.objects.items():
        (flavors / f"{name}.yaml").write_text(yaml.safe_dump(document))
    manifest = example.manifest(node.log_root)
    kubelet.complete(manifest, node.kubelet_dir)
    pod = Pod(node, node.client(), manifest).up()
    pod.wait_for_console("login:")
    assert "usb-tablet" in " ".join(pod.command_line)
    script = """
        until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.2; done
        cd /sys/bus/pci/devices
        for at in *; do echo $(cat $at/vendor)$(cat $at/device); done
        grep -o -m1 -w sse4_2 /proc/cpuinfo
    """
    output = pod.exec("/bin/sh", "-c", script, timeout=120)
    found = output.stdout.split()
    assert {"0x80860x25ab", "0x80860x293e", "0x1b360x000d", "sse4_2"} <= set(found)
    pod.leave("reboot")
    until(lambda: pod.status.state == cri.CONTAINER_EXITED, "the end of the VM", 60)
    pod.down()
    assert node.settled_leftovers() == []


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("unknown", "knows no CPU model 'Pentium5'"),
        ("odd", "QEMU has no machine 'warp'"),
        ("lacking", "QEMU without KVM has no amx-tile, which cpu_features require"),
    ],
)
def test_a_machine_that_the_node_cannot_have_is_refused_and_nothing_is_made(
    node: Playground, handler: str, problem: str
) -> None:
    pod = Pod(node, node.client(), make_manifest(node, handler, handler)).run()
    with pytest.raises(CallFailed, match=problem):
        pod.create()
    assert pod.client.containers() == []
    pod.client.remove_pod(pod.id)
    assert node.settled_leftovers() == []
