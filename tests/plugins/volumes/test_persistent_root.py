"""Root disks on block devices that outlive their pods: real devices, by losetup."""

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.model import make_image, make_vm, make_vm_config
from tests.plugins.volumes.conftest import EMULATOR, configured
from virtlet.errors import FailedPrecondition, InvalidArgument, VirtletError
from virtlet.host.commands import run
from virtlet.model.disk import Disk, Unneeded
from virtlet.model.flavor import Flavor
from virtlet.model.vm import Device, Vm, VolumeRequest
from virtlet.plugins.volumes.plugin import Plugin
from virtlet.testing.models import make_machine

MIB = 1 << 20
SIZE = 4 * MIB
IMAGE = 2 * MIB
DIGEST = "5" * 64
WHOLE = struct.pack(">QH32s", 0x263DBE52BA576702, 1, bytes.fromhex(DIGEST)).ljust(512, b"\0")
"""As Virtlet 1 writes it."""


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device with rests of something else."""
    file = tmp_path / "device"
    file.write_bytes(b"\xee" * SIZE)
    argv = ["losetup", "--find", "--show", str(file)]
    found = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(found)
    subprocess.run(["losetup", "--detach", found], check=True)


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that the emulator's user can pass through, as pytest's own are not."""
    path = Path(tempfile.mkdtemp(prefix="vt-", dir="/var/tmp"))
    path.chmod(0o711)
    (path / "data/volumes/vm").mkdir(parents=True)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def plugin(root: Path) -> Plugin:
    return configured(root, root / "pods")


@pytest.fixture
def vm(root: Path, device: Path) -> Vm:
    """One whose pod has the device as its root, and an image of 2 MiB."""
    raw, path = root / "image.raw", root / "image.qcow2"
    raw.write_bytes(b"boot" + bytes(MIB - 4) + b"end!" + bytes(MIB - 4))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(path)])
    path.chmod(0o444)
    image = evolve(make_image(path, IMAGE), id=f"sha256:{DIGEST}")
    return of_image(make_vm(root / "data/volumes/vm", image=image), str(device))


def of_image(vm: Vm, device: str, permissions: str = "mrw") -> Vm:
    wanted = Device(guest_path="/", host_path=device, permissions=permissions)
    os.chown(vm.directory, EMULATOR, EMULATOR)
    return evolve(vm, config=evolve(make_vm_config(), devices=(wanted,)))


def content(device: Path) -> bytes:
    subprocess.run(["blockdev", "--flushbufs", str(device)], check=True)
    return device.read_bytes()


def test_a_block_volume_becomes_the_root_disk(plugin: Plugin, vm: Vm, device: Path) -> None:
    """The image comes behind a header, and nothing of what was there before is taken for it."""
    (wanted,) = vm.config.devices
    request = VolumeRequest(role="volume-0", source=wanted)
    assert isinstance(plugin.virtlet_volume(vm, request), Unneeded)
    disk = plugin.virtlet_root_disk(vm, Flavor())
    own = vm.directory / "persistent-root"
    assert disk == Disk(
        path=own, format="raw", block=True, serial="root", offset=512, size=SIZE - 512
    )
    assert own.stat().st_rdev == device.stat().st_rdev
    assert (own.stat().st_uid, own.stat().st_mode & 0o777) == (EMULATOR, 0o600)
    written = content(device)
    assert written[:512] == WHOLE
    seen = written[512:]
    assert (seen[:4], seen[MIB : MIB + 4]) == (b"boot", b"end!")
    assert not any(seen[4:MIB])
    assert not any(written[-MIB:])
    for _ in range(2):
        plugin.virtlet_release_root_disk(vm)
        assert not own.exists()
    assert content(device) == written


@pytest.mark.parametrize("flavor", [Flavor(tpm=True), Flavor(firmware="uefi")])
def test_a_machine_with_state_has_room_for_it_on_the_device(
    plugin: Plugin, vm: Vm, device: Path, flavor: Flavor
) -> None:
    """Cleared with the image's writing, and kept with it; the device says so for older Virtlets,
    and another machine of the same image finds its disk."""
    file = Path("/sys/block", device.name, "loop/backing_file").read_text().strip()
    os.truncate(file, 2 * SIZE)
    subprocess.run(["losetup", "--set-capacity", str(device)], check=True)
    disk = plugin.virtlet_root_disk(vm, flavor)
    assert disk is not None
    assert (disk.offset, disk.size) == (SIZE, SIZE)
    assert (disk.state_offset, disk.state_size) == (4096, SIZE - 4096)
    written = content(device)
    assert written[:10] == struct.pack(">QH", 0x263DBE52BA576702, 2)
    assert not any(written[42:SIZE])
    assert written[SIZE : SIZE + 4] == b"boot"
    with device.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"STATE")
    assert plugin.virtlet_root_disk(vm, Flavor()) == disk
    assert content(device)[4096:4101] == b"STATE"
    other = evolve(vm, image=evolve(vm.image, id="sha256:" + "6" * 64))
    assert plugin.virtlet_root_disk(other, flavor) == disk
    assert not any(content(device)[4096:SIZE])


def test_a_device_that_began_without_room_for_state_stays_as_it_is(
    plugin: Plugin, vm: Vm, device: Path
) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor())
    assert disk is not None
    assert plugin.virtlet_root_disk(vm, Flavor(tpm=True)) == disk
    assert disk.state_size == 0


def test_what_a_guest_wrote_is_there_for_the_next_vm(plugin: Plugin, vm: Vm, device: Path) -> None:
    plugin.virtlet_root_disk(vm, Flavor())
    with device.open("r+b") as file:
        file.seek(512)
        file.write(b"GUEST")
    plugin.virtlet_release_root_disk(vm)
    assert plugin.virtlet_root_disk(vm, Flavor()) is not None
    assert content(device)[512:517] == b"GUEST"
    other = evolve(vm, image=evolve(vm.image, id="sha256:" + "6" * 64))
    plugin.virtlet_release_root_disk(vm)
    assert plugin.virtlet_root_disk(other, Flavor()) is not None
    assert content(device)[512:516] == b"boot"


@pytest.mark.parametrize(
    "header",
    [
        WHOLE[:9],
        WHOLE[:42][:-1] + b"\0",
        struct.pack(">QH", 0x263DBE52BA576702, 0) + bytes.fromhex(DIGEST),
        bytes(512),
    ],
)
def test_a_header_that_is_not_whole_is_written_anew(
    plugin: Plugin, vm: Vm, device: Path, header: bytes
) -> None:
    with device.open("r+b") as file:
        file.write(header.ljust(42, b"\0") + b"DATA")
    plugin.virtlet_root_disk(vm, Flavor())
    written = content(device)
    assert (written[:512], written[512:516]) == (WHOLE, b"boot")


def test_a_newer_header_is_an_error_and_the_device_is_left_alone(
    plugin: Plugin, vm: Vm, device: Path
) -> None:
    with device.open("r+b") as file:
        file.write(struct.pack(">QH", 0x263DBE52BA576702, 3))
    before = content(device)
    with pytest.raises(FailedPrecondition, match=r"header of version 3, and this Virtlet knows 2"):
        plugin.virtlet_root_disk(vm, Flavor())
    assert content(device) == before


_CUT_SHORT = """
import os, sys
from pathlib import Path
from tests.plugins.volumes.test_persistent_root import cut_short
cut_short(sys.argv[1:])
"""
_KILLERS = {
    "before the image": "#!/bin/sh\nkill -KILL MANAGER\n",
    "in the image": "#!/bin/sh\n"
    "printf boot | dd of=DEVICE bs=512 seek=1 conv=notrunc,fsync 2>/dev/null\n"
    "kill -KILL MANAGER\n",
    "behind the image": '#!/bin/sh\n/usr/bin/choom "$@"\nkill -KILL MANAGER\n',
}
"""Programs in the place of choom, which starts qemu-img, that end the manager."""


def cut_short(arguments: list[str]) -> None:
    """Make the root disk in a process of its own, which dies on the way."""
    root, directory, image, device = arguments
    killer = Path(root) / "bin" / "choom"
    # A program that handles images has a clean environment, which could not tell it.
    killer.write_text(killer.read_text().replace("MANAGER", str(os.getpid())))
    made = make_image(Path(image), IMAGE)
    vm = make_vm(Path(directory), image=evolve(made, id=f"sha256:{DIGEST}"))
    configured(Path(root), Path(root) / "pods").virtlet_root_disk(of_image(vm, device), Flavor())


@pytest.mark.parametrize("when", _KILLERS)
def test_what_a_crash_cut_short_is_redone_and_never_started_from(
    plugin: Plugin, vm: Vm, device: Path, root: Path, when: str
) -> None:
    plugin.virtlet_root_disk(vm, Flavor())  # of another image's
    with device.open("r+b") as file:
        file.write(WHOLE[:10] + b"\x77" * 32)
        file.seek(512)
        file.write(b"OLD!")
    programs = root / "bin"
    programs.mkdir()
    (programs / "choom").write_text(_KILLERS[when].replace("DEVICE", str(device)))
    (programs / "choom").chmod(0o755)
    arguments = [str(root), str(vm.directory), str(vm.image.path), str(device)]
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", _CUT_SHORT, *arguments],
        env={**os.environ, **path},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert content(device)[:512] == bytes(512)
    with pytest.raises(FailedPrecondition, match="was written by another VM after"):
        plugin.virtlet_launch(evolve(make_machine(vm.directory), vm=vm, root=_root(vm)))
    plugin.virtlet_release_root_disk(vm)
    plugin.virtlet_root_disk(vm, Flavor())
    written = content(device)
    assert (written[:512], written[512:516]) == (WHOLE, b"boot")


def _root(vm: Vm) -> Disk:
    return Disk(path=vm.directory / "persistent-root", format="raw", block=True)


def test_a_device_is_kept_for_a_vm_that_runs(plugin: Plugin, vm: Vm, device: Path) -> None:
    disk = plugin.virtlet_root_disk(vm, Flavor())
    assert disk is not None
    machine = evolve(make_machine(vm.directory), vm=vm, root=disk, flavor=Flavor())
    part = plugin.virtlet_launch(machine)
    assert part is not None
    (held,) = part.fds
    try:
        for again in (
            lambda: plugin.virtlet_root_disk(vm, Flavor()),
            lambda: plugin.virtlet_launch(machine),
        ):
            with pytest.raises(FailedPrecondition, match=r"is in use: another VM of this node"):
                again()
    finally:
        os.close(held.fd)
    assert plugin.virtlet_root_disk(vm, Flavor()) == disk


def _vanish(vm: Vm) -> Vm:
    return of_image(vm, "/dev/disk/by-id/gone")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda vm: of_image(vm, vm.config.devices[0].host_path, "r"), "writes to its root disk"),
        (lambda vm: evolve(vm, image=evolve(vm.image, virtual_size=SIZE)), "has 4194304 bytes"),
        (lambda vm: of_image(vm, "/dev/null"), "is not a block device"),
        (_vanish, "No such file or directory"),
    ],
)
def test_a_device_that_cannot_be_the_root_is_refused_and_left_alone(
    plugin: Plugin, vm: Vm, device: Path, change: Callable[[Vm], Vm], problem: str
) -> None:
    before = content(device)
    with pytest.raises((InvalidArgument, FailedPrecondition), match=problem):
        plugin.virtlet_root_disk(change(vm), Flavor())
    assert content(device) == before


def test_a_device_that_the_node_has_made_read_only_is_refused(
    plugin: Plugin, vm: Vm, device: Path
) -> None:
    subprocess.run(["blockdev", "--setro", str(device)], check=True)
    try:
        with pytest.raises(FailedPrecondition, match="device path /: .*: (Operation|Permission)"):
            plugin.virtlet_root_disk(vm, Flavor())
    finally:
        subprocess.run(["blockdev", "--setrw", str(device)], check=True)


def test_an_image_that_cannot_be_written_whole_leaves_no_header(
    plugin: Plugin, vm: Vm, device: Path
) -> None:
    broken = evolve(vm, image=evolve(vm.image, path=vm.image.path.with_name("gone")))
    with pytest.raises(VirtletError, match="qemu-img"):
        plugin.virtlet_root_disk(broken, Flavor())
    assert content(device)[:512] == bytes(512)


def test_other_root_disks_are_left_to_others(plugin: Plugin, vm: Vm) -> None:
    """Of pods without such a device, and of images that are no disks."""
    assert plugin.virtlet_root_disk(evolve(vm, config=make_vm_config()), Flavor()) is None
    assert (
        plugin.virtlet_root_disk(evolve(vm, image=evolve(vm.image, format="kernel")), Flavor())
        is None
    )
    assert plugin.virtlet_launch(make_machine(vm.directory)) is None
