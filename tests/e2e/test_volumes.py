"""Volumes of a pod, seen from inside the guest."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import PodFactory
from virtlet.cri import api_pb2 as cri

SIZE = 1 << 20


@pytest.fixture
def block_device(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """(device, file behind it): a block device of the node's, as a local volume is one."""
    file = tmp_path / "disk"
    file.write_bytes(b"written on the node".ljust(SIZE, b"\0"))
    argv = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device), file
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_volume_is_read_and_written_by_the_guest(
    new_pod: PodFactory, block_device: tuple[Path, Path]
) -> None:
    """At the path the pod names; the node's own device keeps its owner and mode."""
    device, file = block_device
    before = device.stat()
    pod = new_pod("with-block-volume")
    # A script of the pod's own stands instead of the cloud-config that makes device paths.
    pod.pod.annotations.pop("VirtletCloudInitUserDataScript")
    pod.manifest.container.devices.add(
        host_path=str(device), container_path="/dev/data", permissions="mrw"
    )
    pod = pod.up()
    pod.wait_for_console("login:")

    def run(script: str) -> bytes:
        command = cri.ExecSyncRequest(
            container_id=pod.vm, cmd=["/bin/sh", "-c", script], timeout=60
        )
        reply = pod.client.call("ExecSync", command, timeout=70)
        assert reply.exit_code == 0, reply.stderr
        return bytes(reply.stdout)

    run("until [ -b /dev/data ]; do sleep 0.2; done")
    assert run("head -c 19 /dev/data") == b"written on the node"
    run("printf 'written in the guest' | dd of=/dev/data bs=512 seek=1 conv=notrunc,fsync")
    subprocess.run(["blockdev", "--flushbufs", str(device)], check=True)
    assert file.read_bytes()[512:532] == b"written in the guest"

    pod.down()
    after = device.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (
        before.st_uid,
        before.st_gid,
        before.st_mode,
    )
    assert not (pod.node.data_dir / "volumes" / pod.vm).exists()
