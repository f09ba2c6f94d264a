"""Image volumes as disks, and what of an image can be one."""

import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from attrs import evolve

from tests.fakes.oci_images import archive, regular
from virtlet.errors import FailedPrecondition
from virtlet.model.disk import Disk
from virtlet.model.image import Image
from virtlet.model.vm import Mount, Vm, VolumeRequest
from virtlet.plugins.volumes.image_volumes import release_image, serve_image
from virtlet.testing import make_pod, make_vm, make_vm_config

LAYER = archive(
    [
        (regular("srv/pages/index.html", 1), b"x"),
        (regular("srv/with blanks/x", 1), b"x"),
        (regular("srv/[ab]*/x", 1), b"x"),
        (regular("link", type=tarfile.SYMTYPE, linkname="srv"), b""),
        (regular("boot/vmlinuz-6", 6), b"kernel"),
        (regular("vmlinuz", type=tarfile.SYMTYPE, linkname="boot/vmlinuz-6"), b""),
        (regular("passwd", type=tarfile.SYMTYPE, linkname="/etc/passwd"), b""),
        (regular("up", type=tarfile.SYMTYPE, linkname="../" * 20 + "etc/passwd"), b""),
        (regular("empty", 0), b""),
    ]
)


def requested(
    directory: Path, sub_path: str = "", format: str = "squashfs", **flavor: str
) -> tuple[Vm, Mount, VolumeRequest]:
    """A volume of an image with a few files, for a VM with a flavor."""
    path = directory / "volume-3"
    if not path.exists():
        command = ["sqfstar", "-quiet", "-no-progress", "-no-compression", str(path)]
        subprocess.run(command, input=LAYER, check=True, capture_output=True)
    path.chmod(0o444)
    image = Image(id="sha256:1", path=path, format=format, size=4096, virtual_size=4096)
    mount = Mount(
        guest_path="/site",
        host_path="",
        readonly=True,
        image="sha256:1",
        user_image="quay.io/site:1",
        image_sub_path=sub_path,
    )
    pod = make_pod()
    pod = evolve(pod, profile=evolve(pod.profile, flavor=flavor))
    config = evolve(make_vm_config(), mounts=(mount,))
    vm = evolve(make_vm(directory, pod), config=config, directory=directory)
    return vm, mount, VolumeRequest(role="volume-3", source=mount, image=image)


def served(directory: Path, sub_path: str = "", format: str = "squashfs", **flavor: str) -> Disk:
    """What such a volume becomes."""
    return serve_image(*requested(directory, sub_path, format, **flavor))


def test_an_image_is_a_disk_that_the_guest_mounts_to_read(tmp_path: Path) -> None:
    assert served(tmp_path) == Disk(
        path=tmp_path / "volume-3",
        format="raw",
        readonly=True,
        serial="volume-3",
        guest_path="/site",
        filesystem=True,
        filesystem_type="squashfs",
        mount_options=("nodev", "nosuid", "noexec"),
    )


@pytest.mark.parametrize("path", ["srv", "srv/pages", "srv/with blanks", "srv/[ab]*"])
def test_a_directory_of_an_image_may_be_the_volume(tmp_path: Path, path: str) -> None:
    assert served(tmp_path, path).sub_path == path


@pytest.mark.parametrize(
    "path", ["nothing", "srv/pages/index.html", "srv/p*", "link", "link/pages", "-help"]
)
def test_what_is_no_directory_of_the_image_is_refused(tmp_path: Path, path: str) -> None:
    match = f"mount /site: image quay.io/site:1 has no directory '{path}'".replace("*", r"\*")
    with pytest.raises(FailedPrecondition, match=match):
        served(tmp_path, path)


def test_a_disk_of_a_machine_is_no_volume(tmp_path: Path) -> None:
    match = r"mount /site: image quay.io/site:1 is a disk of a machine \(qcow2\)"
    with pytest.raises(FailedPrecondition, match=match):
        served(tmp_path, format="qcow2")


def test_an_image_of_a_cd_is_a_cd(tmp_path: Path) -> None:
    """Drivers for Windows, as a rule."""
    path = tmp_path / "volume-3"
    path.write_bytes(bytes(32769) + b"CD001" + bytes(4096))
    assert served(tmp_path, format="raw") == Disk(
        path=path, format="raw", readonly=True, kind="cdrom", serial="volume-3", guest_path="/site"
    )
    with pytest.raises(FailedPrecondition, match="initrd image:/site/i of .* is a CD, and a machi"):
        served(tmp_path, format="raw", kernel="image:/else/k", initrd="image:/site/i")
    path.chmod(0o600)
    path.write_bytes(bytes(65536))
    with pytest.raises(FailedPrecondition, match="is a disk of a machine"):
        served(tmp_path, format="raw")


@pytest.mark.parametrize(
    ("sub_path", "path"), [("", "boot/vmlinuz-6"), ("", "vmlinuz"), ("boot", "vmlinuz-6")]
)
def test_a_machine_may_boot_by_files_of_an_image(tmp_path: Path, sub_path: str, path: str) -> None:
    """By copies that go with the volume; links lead to what they name in the image."""
    place = f"image:/site/{path}"
    vm, mount, request = requested(tmp_path, sub_path, kernel=place, initrd=place)
    copies = [tmp_path / "volume-3.kernel", tmp_path / "volume-3.initrd"]
    for _ in range(2):  # As after a manager that was killed on the way.
        disk = serve_image(vm, mount, request)
        assert [disk.kernel, disk.initrd] == copies
        assert [copy.read_bytes() for copy in copies] == [b"kernel"] * 2
        assert {copy.stat().st_mode & 0o777 for copy in copies} == {0o444}
    for _ in range(2):
        release_image(vm, request)
        assert [file.name for file in tmp_path.iterdir()] == ["volume-3"]


@pytest.mark.parametrize("kernel", ["image:/elsewhere/vmlinuz", "image:/sites/v", "/boot/vmlinuz"])
def test_a_kernel_from_elsewhere_is_not_looked_for(tmp_path: Path, kernel: str) -> None:
    assert served(tmp_path, kernel=kernel).kernel is None
    assert [file.name for file in tmp_path.iterdir()] == ["volume-3"]


@pytest.mark.parametrize("path", ["nothing", "boot", "passwd", "up", "empty", "boot/*"])
def test_what_is_no_file_of_the_image_boots_nothing(tmp_path: Path, path: str) -> None:
    match = re.escape(f"kernel image:/site/{path} of its flavor: image quay.io/site:1 has no file")
    with pytest.raises(FailedPrecondition, match=match):
        served(tmp_path, kernel=f"image:/site/{path}")
    assert [file.name for file in tmp_path.iterdir()] == ["volume-3"]
