"""A guest that does not boot: the pod's log says where it stopped."""

import subprocess
from pathlib import Path

from tests.e2e.conftest import Pod, make_manifest
from virtlet.cli.playground import Playground


def test_the_log_of_a_guest_without_a_boot_loader_says_that_the_firmware_found_none(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "blank.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "64M"], check=True)
    with Playground({"tiny": disk}, subnet="10.129.0.0/16") as node, node.client() as client:
        pod = Pod(node, client, make_manifest(node)).up()
        pod.wait_for_console("No bootable device.")
        assert "Boot failed: not a bootable disk" in pod.console()
