"""An image of a Ceph cluster as a guest's disk."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.fakes import ceph
from tests.fakes.kubelet.volumes import FLEXVOLUME_DRIVER
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.host import netns
from virtlet.host.processes import environment

IMAGE = "database-1"


@pytest.fixture(scope="module")
def node() -> Iterator[Playground]:
    settings = {"cephMonitors": "127.0.0.1"}
    with Playground(
        {"tiny": TINY}, subnet="10.137.0.0/16", settings=settings, wrapper=AS_THE_UNIT
    ) as node:
        yield node


@pytest.fixture(scope="module")
def cluster(node: Playground) -> Iterator[ceph.Cluster]:
    """A cluster in the node's network, with an image that has a file system."""
    with ExitStack() as cleanup:

        def make() -> ceph.Cluster:
            made = cleanup.enter_context(ceph.cluster(node.directory / "ceph"))
            made.make_image(IMAGE)
            return made

        yield netns.inside(node.netns, make)


@pytest.fixture
def volumes(node: Playground) -> Iterator[list[Path]]:
    """Volumes that are taken away at the end."""
    made: list[Path] = []
    yield made
    for path in made:
        subprocess.run(["sh", FLEXVOLUME_DRIVER, "unmount", path], check=True)


def pod_with(node: Playground, name: str, volumes: list[Path], **changes: str) -> Pod:
    pod = Pod(node, node.client(), make_manifest(node, name))
    path = node.kubelet_dir / pod.pod.metadata.uid / "volumes/virtlet~flexvolume_driver/data"
    options = {
        "type": "ceph",
        "monitor": ceph.MONITOR,
        "user": ceph.USER,
        "pool": ceph.POOL,
        "volume": IMAGE,
        **changes,
    }
    subprocess.run(["sh", FLEXVOLUME_DRIVER, "mount", path, json.dumps(options)], check=True)
    volumes.append(path)
    pod.manifest.container.mounts.add(container_path="/data", host_path=str(path))
    return pod


def _server(pod: Pod) -> int:
    (file,) = (pod.node.data_dir / "run/vm" / pod.vm[:12]).glob("backends/rbd-*/pid")
    return int(file.read_text())


def test_a_guest_has_an_image_of_a_cluster_as_its_disk(
    node: Playground, cluster: ceph.Cluster, volumes: list[Path], tmp_path: Path
) -> None:
    """It outlives a restart of the manager; the end of what serves it is told; what was written is
    in the cluster; nothing of the node shows the key."""
    pod = pod_with(node, "with-image", volumes, secret=cluster.key).up()
    pod.wait_for_console("login:")
    mounted = "until grep -q ' /data ext4' /proc/mounts; do sleep 0.2; done"
    assert pod.exec("sh", "-c", f"{mounted}; echo written >/data/file; sync").exit_code == 0

    server = _server(pod)
    emulator = Path(f"/proc/{pod.emulator}")
    proc = Path(f"/proc/{server}")
    assert proc.stat().st_uid not in (0, 65534, emulator.stat().st_uid)
    assert not os.path.samefile(proc / "ns/net", emulator / "ns/net")
    secret = cluster.key.encode()
    for each in Path("/proc").glob("[0-9]*"):
        if "qemu" in (each / "comm").read_text():
            assert secret not in (each / "cmdline").read_bytes()
            assert all(secret not in word for word in environment(int(each.name)))
    for path in (node.log_file, *node.data_dir.rglob("*.log"), *node.data_dir.rglob("*.xml")):
        assert secret not in path.read_bytes()

    node.stop()
    node.start()
    assert pod.exec("sh", "-c", "echo again >>/data/file; sync").exit_code == 0
    copy = tmp_path / "copy"
    convert = [
        "qemu-img",
        "convert",
        "-U",
        "-f",
        "raw",
        "-O",
        "raw",
        cluster.image(IMAGE),
        str(copy),
    ]
    netns.inside(node.netns, lambda: subprocess.run(convert, check=True))
    assert b"written\nagain\n" in copy.read_bytes()
    os.kill(server, signal.SIGKILL)
    until(lambda: "fails from now on" in pod.console(), "the notice", 30)
    pod.client.stop(pod.vm, 0)
    pod.down()
    assert not (node.data_dir / "run/vm" / pod.vm[:12]).exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"volume": "missing"}, r"(?s)rbd-volume-\d ended .status 1.*No such file"),
        (
            {"secret": "AQA" + "B" * 35 + "=="},
            r"(?s)rbd-volume-\d ended .status 1.*error connecting",
        ),
    ],
)
def test_what_the_cluster_refuses_fails_the_start_and_leaves_nothing(
    node: Playground,
    cluster: ceph.Cluster,
    volumes: list[Path],
    changes: dict[str, str],
    words: str,
) -> None:
    name = "refused-" + next(iter(changes))
    pod = pod_with(node, name, volumes, **{"secret": cluster.key, **changes}).run().create()
    with pytest.raises(CallFailed, match=words) as caught:
        pod.client.start(pod.vm)
    assert cluster.key not in str(caught.value)
    assert not list((node.data_dir / "run/vm" / pod.vm[:12]).glob("backends/*"))
    pod.down()
