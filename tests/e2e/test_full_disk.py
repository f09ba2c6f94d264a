"""A data disk that is full to the last byte: whatever is there can be taken away."""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e.conftest import TINY, Pod, make_manifest
from tests.images.disks import raw_disk
from virtlet.cli.client import CallFailed, Client
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

SIZE = "400m"
SPARE = "spare"
SPARE_SIZE = 1 << 20


def _images_bytes(client: Client) -> int:
    (images,) = client.call("ImageFsInfo", cri.ImageFsInfoRequest()).image_filesystems
    return int(images.used_bytes.value)


class SmallNode:
    """A node whose data directory is a small file system of its own."""

    def __init__(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="virtlet-", dir="/var/tmp"))
        self.data = directory / "data"
        self.data.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={SIZE}"]
        subprocess.run(["mount", *options, "tmpfs", str(self.data)], check=True)
        spare = directory / SPARE
        spare.write_bytes(raw_disk(SPARE, SPARE_SIZE))
        self.node = Playground(
            {"tiny": TINY, SPARE: spare}, subnet="10.131.0.0/16", directory=directory
        )
        self._fillers: list[Path] = []

    def fill(self) -> None:
        """Take every byte that is free."""
        filler = self.data / f"filler-{len(self._fillers)}"
        self._fillers.append(filler)
        with filler.open("wb", buffering=0) as file:
            for block in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(block))
        assert shutil.disk_usage(self.data).free == 0

    def empty(self) -> None:
        """Give it all back."""
        for filler in self._fillers:
            filler.unlink(missing_ok=True)

    def close(self) -> None:
        """Take pods, manager and file system away."""
        try:
            self.empty()
            with self.node.client() as client:
                for pod in client.pods():
                    client.remove_pod(pod.id)
            self.node.stop()
        finally:
            subprocess.run(["umount", "--lazy", str(self.data)], check=True)
            self.node.destroy()


@pytest.fixture
def small() -> Iterator[SmallNode]:
    small = SmallNode()
    try:
        small.node.create()
        yield small
    finally:
        small.close()


def test_pods_on_a_full_disk_are_stopped_and_removed_and_new_ones_wait_for_space(
    small: SmallNode,
) -> None:
    node = small.node
    with node.client() as client:
        spare = client.pull(f"{SPARE}:latest")
        running = Pod(node, client, make_manifest(node)).up()
        made = [Pod(node, client, make_manifest(node)).run().create() for _ in range(2)]

        small.fill()
        with pytest.raises(CallFailed) as caught:
            Pod(node, client, make_manifest(node)).run()
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"the file system of {small.data} has no room for another VM" in caught.value.details
        client.stop(running.vm, 0)
        client.stop_pod(running.id)
        small.fill()
        running.down()

        # Eviction asks for images too: one that nothing uses gives its space back at once.
        small.fill()
        held = _images_bytes(client)
        client.call("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=spare)))
        assert held - _images_bytes(client) >= SPARE_SIZE
        assert shutil.disk_usage(small.data).free >= SPARE_SIZE

        # An operator who restarts the manager does not make it worse.
        small.fill()
        made[0].down()
        node.stop()
        small.fill()
        node.start()
        made[1].down()

        small.empty()
        again = Pod(node, client, make_manifest(node)).up()
        again.down()
        assert client.pods() == []
