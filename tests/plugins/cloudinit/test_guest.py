"""The seed in a real guest: the tiny one, booted directly under QEMU."""

import base64
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.model import make_pod, make_vm, make_vm_config
from tests.plugins.cloudinit.conftest import KEY
from tests.plugins.cloudinit.test_plugin import write
from tests.tiny.conftest import tiny_image as tiny_image
from tests.tiny.tiny_guest import Guest
from virtlet.model.disk import Disk, GuestFiles, Volume
from virtlet.model.network import Network, Nic, Route
from virtlet.model.pod import DnsConfig
from virtlet.plugins.cloudinit.plugin import Plugin

MAC = "52:54:00:12:34:56"
NETWORK = Network(
    netns=None,
    nics=(
        Nic(
            name="eth0",
            mac=MAC,
            mtu=1400,
            addresses=("10.1.2.3/24", "fd00::3/64"),
            routes=(Route(destination="0.0.0.0/0", gateway="10.1.2.1"),),
        ),
    ),
    dns=DnsConfig(
        servers=("10.96.0.10",), searches=("svc.cluster.local",), options=("ndots:5", "edns0")
    ),
)
ENVS = (("GREETING", "hello-world"), ("LINES", "a\n'$b\""))


def volumes(root: Path) -> list[Volume]:
    """A secret, a raw disk and one with a file system, as the built-in volumes give them."""
    secret = root / "secret"
    secret.mkdir()
    (secret / "token").write_text("größe\n")
    (secret / "key.bin").write_bytes(bytes(range(256)))
    raw, formatted = root / "raw.img", root / "formatted.img"
    raw.write_bytes(b"raw disk".ljust(1 << 20, b"\0"))
    formatted.write_bytes(bytes(4 << 20))
    (root / "content").mkdir()
    (root / "content" / "file").write_text("on the disk")
    subprocess.run(
        ["/usr/sbin/mkfs.ext4", "-q", "-d", str(root / "content"), str(formatted)], check=True
    )
    return [
        GuestFiles(host_path=secret, guest_path="/etc/my secret", mode=0o600),
        Disk(path=raw, format="raw", serial="volume-1", guest_path="/dev/data"),
        Disk(
            path=formatted,
            format="raw",
            serial="volume-2",
            guest_path="/mnt/my data",
            filesystem=True,
        ),
    ]


def drives() -> Iterator[str]:
    """The raw disk by virtio-blk, the other by SCSI: they show their serial numbers elsewhere."""
    yield from ("-device", "virtio-blk-pci,drive=d1,serial=volume-1")
    yield from ("-device", "virtio-scsi-pci")
    yield from ("-device", "scsi-hd,drive=d2,serial=volume-2")


def boot(plugin: Plugin, image: Path, root: Path, annotations: dict[str, str]) -> Guest:
    directory = root / "vm"
    directory.mkdir()
    served = volumes(root)
    vm = make_vm(
        directory,
        make_pod(annotations | {"VirtletSSHKeys": KEY}),
        network=NETWORK,
        config=make_vm_config(envs=ENVS),
    )
    seed = write(plugin, vm, served)
    arguments = [*drives(), "-drive", f"if=none,id=seed,media=cdrom,readonly=on,file={seed.path}"]
    for number, disk in enumerate(v for v in served if isinstance(v, Disk)):
        arguments += ["-drive", f"if=none,id=d{number + 1},format=raw,file={disk.path}"]
    return Guest(
        image,
        directory,
        *arguments,
        *("-device", "scsi-cd,drive=seed"),
        disk=("-device", "virtio-blk-pci,drive=root,bootindex=1"),
        network=(
            *("-netdev", "user,id=n,restrict=on"),
            *("-device", f"virtio-net-pci,netdev=n,mac={MAC}"),
        ),
    )


def enter(guest: Guest) -> None:
    """Log in once the user-data is done, and keep the kernel from talking into answers."""
    guest.login()
    guest.wait_user_data()
    guest.run("echo 1 >/proc/sys/kernel/printk")


def check_volumes(guest: Guest) -> None:
    token = guest.run("base64 '/etc/my secret/token'")
    assert base64.b64decode(token).decode() == "größe\n"
    assert guest.run("stat -c %a '/etc/my secret/token' '/etc/my secret/key.bin'") == "600\n600\n"
    digest = "40aff2e9d2d8922e47afd4648e6967497158785fbd1da870e7110266bf944880"
    assert guest.run("sha256sum '/etc/my secret/key.bin'").split()[0] == digest
    assert guest.run("head -c 8 /dev/data; echo") == "raw disk\n"
    assert guest.run("test -L /dev/data && cat '/mnt/my data/file'; echo") == "on the disk\n"
    read_back = '. /etc/cloud/environment; printf "%s|" "$LINES"; echo'
    assert guest.run(read_back) == "a\n'$b\"|\n"
    assert guest.run("grep -c '^options ndots:5 edns0$' /etc/resolv.conf") == "1\n"


def test_a_guest_is_set_up_by_a_nocloud_seed(
    plugin: Plugin, tiny_image: Path, tmp_path: Path
) -> None:
    marks = {"VirtletCloudInitUserData": "runcmd: [['echo', 'the pod''s own command']]"}
    with boot(plugin, tiny_image, tmp_path, marks) as guest:
        enter(guest)
        assert "the pod's own command" in guest.transcript
        assert guest.run("hostname") == "web-1\n"
        assert KEY in guest.run("cat /root/.ssh/authorized_keys")
        assert "GREETING=hello-world\n" in guest.run("cat /etc/cloud/environment")
        check_volumes(guest)
        shown = guest.run("ip addr show eth0; ip route; cat /etc/resolv.conf")
        for part in ("mtu 1400", MAC, "10.1.2.3/24", "fd00::3/64", "default via 10.1.2.1"):
            assert part in shown
        assert "nameserver 10.96.0.10" in shown
        assert "search svc.cluster.local" in shown
        names = ("mount-volumes", "symlink-devs", "resolver-options")
        again = " && ".join(f"/etc/cloud/{name}.sh" for name in names)
        assert guest.run(f"{again} && grep -c '/mnt/my.040data' /proc/mounts") == "1\n"
        assert guest.run("grep -c '^options' /etc/resolv.conf") == "1\n"


def test_a_guest_without_cloud_config_is_set_up_by_the_script_on_a_config_drive(
    plugin: Plugin, tiny_image: Path, tmp_path: Path
) -> None:
    marks = {
        "VirtletCloudInitImageType": "configdrive",
        "VirtletCloudInitUserDataScript": (
            "#!/bin/sh\nset -e\n@virtlet-mount-script@\necho mounted, going on\n"
        ),
    }
    with boot(plugin, tiny_image, tmp_path, marks) as guest:
        enter(guest)
        assert "mounted, going on" in guest.transcript
        assert guest.run("hostname") == "web-1\n"
        check_volumes(guest)


@pytest.fixture(autouse=True)
def _short_paths(tmp_path: Path) -> None:
    """QEMU's sockets stand in the VM's directory; a path over 107 bytes is none."""
    assert len(str(tmp_path / "vm" / "agent")) < 107
