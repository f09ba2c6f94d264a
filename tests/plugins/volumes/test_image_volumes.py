"""Image volumes as disks, and what of an image can be one."""

import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.fakes.oci_images import archive, regular
from virtlet.errors import FailedPrecondition
from virtlet.model.disk import Disk
from virtlet.model.image import Image
from virtlet.model.vm import Mount, VolumeRequest
from virtlet.plugins.volumes.image_volumes import serve_image

LAYER = archive(
    [
        (regular("srv/pages/index.html", 1), b"x"),
        (regular("srv/with blanks/x", 1), b"x"),
        (regular("srv/[ab]*/x", 1), b"x"),
        (regular("link", type=tarfile.SYMTYPE, linkname="srv"), b""),
    ]
)


def served(directory: Path, sub_path: str = "", format: str = "squashfs") -> Disk:
    """The disk of an image with a few files."""
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
    return serve_image(mount, VolumeRequest(role="volume-3", source=mount, image=image))


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
    path.chmod(0o600)
    path.write_bytes(bytes(65536))
    with pytest.raises(FailedPrecondition, match="is a disk of a machine"):
        served(tmp_path, format="raw")
