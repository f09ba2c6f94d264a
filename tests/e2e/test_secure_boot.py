"""Secure boot with Microsoft's keys: what is not signed does not start."""

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from virtlet.cli.playground import Playground

_PARTITION = "@@1M"
"""What mtools has to know of the tiny guest's disk."""
_KERNEL, _LOADER = "::/vmlinuz", "::/EFI/BOOT/BOOTX64.EFI"


def _changed(disk: Path, directory: Path) -> Path:
    """A raw disk with one bit of its kernel changed."""
    kernel = directory / "vmlinuz"
    _mtools("mcopy", disk, _KERNEL, str(kernel))
    content = bytearray(kernel.read_bytes())
    content[len(content) // 2] ^= 1
    kernel.write_bytes(content)
    _mtools("mcopy", disk, "-o", str(kernel), _KERNEL)
    return disk


def _unsigned(disk: Path, directory: Path) -> Path:
    """A raw disk whose boot loader Microsoft has not signed."""
    loader = directory / "loader"
    _mtools("mcopy", disk, "::/EFI/BOOT/grubx64.efi", str(loader))
    _mtools("mcopy", disk, "-o", str(loader), _LOADER)
    return disk


def _mtools(program: str, disk: Path, *arguments: str) -> None:
    subprocess.run([program, "-i", f"{disk}{_PARTITION}", *arguments], check=True)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    images = {}
    for name, change in {"changed": _changed, "unsigned": _unsigned}.items():
        directory = tmp_path_factory.mktemp(name)
        disk = directory / "disk.raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(TINY), str(disk)], check=True)
        images[name] = change(disk, directory)
    handlers = {name: {"flavor": {"firmware": name}} for name in ("uefi", "uefi-secure")}
    with Playground(
        images, subnet="10.135.0.0/16", settings={"handlers": handlers}, wrapper=AS_THE_UNIT
    ) as node:
        yield node


@pytest.fixture(scope="module")
def pods(node: Playground) -> Iterator[dict[tuple[str, str], Pod]]:
    """By image and handler; they boot side by side."""
    with node.client() as client:
        made = {}
        for image, handler in (
            ("changed", "uefi-secure"),
            ("unsigned", "uefi-secure"),
            ("unsigned", "uefi"),
        ):
            manifest = make_manifest(node, f"{image}-{handler}", handler)
            manifest.container.image.image = f"virtlet.cloud/{image}"
            made[image, handler] = Pod(node, client, manifest).up()
        yield made
        for pod in made.values():
            pod.client.stop(pod.vm, 0)
            pod.down()
        assert node.settled_leftovers() == []


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("changed", r"Error loading \vmlinuz: Security violation"),
        ("unsigned", "Access Denied"),
    ],
)
def test_what_is_not_signed_does_not_start(
    pods: dict[tuple[str, str], Pod], image: str, said: str
) -> None:
    """A kernel by the shim's word, a boot loader by the firmware's; the pod's log has it."""
    pod = pods[image, "uefi-secure"]
    pod.wait_for_console(said)
    assert "Linux version" not in pod.console()


def test_it_is_secure_boot_that_refuses(pods: dict[tuple[str, str], Pod]) -> None:
    pods["unsigned", "uefi"].wait_for_console("login:")


def test_each_vm_has_variables_of_its_own_which_go_with_it(node: Playground) -> None:
    """In a file of its emulator's user, which starts from the firmware's template."""
    with node.client() as client:
        manifest = make_manifest(node, "variables", "uefi-secure")
        manifest.container.image.image = "virtlet.cloud/unsigned"
        pod = Pod(node, client, manifest).up()
        (files,) = (word for word in pod.command_line if "_VARS" in word and "filename" in word)
        variables = Path(json.loads(files)["filename"])
        status = variables.stat()
        assert status.st_uid == Path(f"/proc/{pod.emulator}").stat().st_uid
        assert stat.S_IMODE(status.st_mode) == 0o600
        assert pod.vm[:12] in variables.name
        pod.client.stop(pod.vm, 0)
        pod.down()
        assert not variables.exists()
