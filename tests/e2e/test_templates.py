"""What `virtlet plugins new` writes, with guests."""

import json
import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import TINY
from virtlet.cli.plugins import KINDS, write_package
from virtlet.testing import BootGuest, MakeNode


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    """A new package of each kind."""
    return {kind: write_package(f"my-{kind}", kind, tmp_path)[0].parent for kind in KINDS}


def test_a_guest_boots_with_new_plugins_of_all_kinds_together(
    packages: dict[str, Path], virtlet_node: MakeNode, virtlet_guest: BootGuest, tmp_path: Path
) -> None:
    node = virtlet_node(*(path for kind, path in packages.items() if kind != "hypervisor"))
    (node.data_dir / "my-image").mkdir()
    shutil.copy(TINY, node.data_dir / "my-image" / "guest.qcow2")
    volume = tmp_path / "data.img"
    volume.write_bytes(bytes(1 << 20))
    guest = virtlet_guest(
        node,
        image="virtlet.cloud/my-image/guest",
        mounts={"/data": volume},
        annotations={"MyFlavorSize": "small"},
    )
    name = f"default/{guest.pod.metadata.name}"
    assert guest.exec("cat", "/etc/my-cloud-init").stdout == f"{name}\n"
    assert guest.address == "10.79.0.2"
    assert (guest.directory / "root.raw").exists()
    assert (guest.directory / "volume-0").stat().st_size == 1 << 20
    assert f"name=opt/my-launch/pod,string={name}" in guest.command_line
    assert "i6300esb" in " ".join(guest.command_line)
    lines = (node.data_dir / "my-event.jsonl").read_text().splitlines()
    assert "vm-started" in [json.loads(line)["what"] for line in lines]


def test_a_guest_boots_with_a_new_hypervisor(
    packages: dict[str, Path], virtlet_node: MakeNode, virtlet_guest: BootGuest
) -> None:
    guest = virtlet_guest(virtlet_node(packages["hypervisor"]))
    guest.wait_for_console("login:")
    guest.node.kill()
    guest.node.start()
    guest.wait_for_end()
