"""The node that is measured: a throwaway one, with the benchmark's guest."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from bench.guest import counting_sector, greeting_sector, make_image, wait_for_greeting
from virtlet.cli.client import Client
from virtlet.cli.manifest import PodManifest, read_manifest
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

SILENT, LOUD = "silent", "loud"
"""Images: of a guest that halts, and of one that prints as fast as it can."""
MANIFEST = Path(__file__).parents[1] / "examples" / "pods" / "tiny.yaml"


class LeftBehind(Exception):
    """Something is left on the node that should be gone; the text says what."""


@frozen
class Pod:
    """A pod that is up."""

    id: str
    vm: str
    log: Path
    """What its console said, in CRI format."""


@frozen
class Node:
    """A node with a manager, and pods on it."""

    playground: Playground
    client: Client

    @property
    def manager(self) -> Path:
        """Directory of the manager's process below /proc."""
        process = self.playground.process
        assert process is not None
        return Path("/proc") / str(process.pid)

    def manifest(self, name: str, image: str = SILENT) -> PodManifest:
        """A pod of one of the benchmark's guests."""
        manifest = read_manifest(MANIFEST, self.playground.log_root)
        manifest.container.image.image = f"virtlet.cloud/{image}"
        pod = manifest.pod
        pod.metadata.name = pod.hostname = name
        pod.metadata.uid = f"uid-{name}"
        pod.log_directory = str(self.playground.log_root / name)
        return manifest

    def warm_up(self) -> None:
        """Have the image in the store, and all that the first pod has to wait for."""
        self.client.pull(self.manifest("any").container.image.image)
        pod, _ = self.up("first")
        self.wait_for_greeting(pod)
        self.down(pod)

    def up(self, name: str, image: str = SILENT) -> tuple[Pod, float]:
        """Bring a pod up as a kubelet does that has the image already.

        Returns:
            The pod, and the seconds from RunPodSandbox to StartContainer's return.
        """
        manifest = self.manifest(name, image)
        question = cri.ImageStatusRequest(image=manifest.container.image)
        started = time.perf_counter()
        pod_id = self.client.run_pod(manifest.pod)
        self.client.call("ImageStatus", question)
        vm_id = self.client.create(pod_id, manifest.container, manifest.pod)
        self.client.start(vm_id)
        took = time.perf_counter() - started
        log = Path(manifest.pod.log_directory) / manifest.container.log_path
        return Pod(pod_id, vm_id, log), took

    def down(self, pod: Pod) -> float:
        """End the VM without grace and remove the pod.

        Returns:
            Seconds from StopContainer to RemovePodSandbox's return.
        """
        started = time.perf_counter()
        self.client.stop(pod.vm, 0)
        self.client.stop_pod(pod.id)
        self.client.remove(pod.vm)
        self.client.remove_pod(pod.id)
        return time.perf_counter() - started

    def wait_for_greeting(self, pod: Pod) -> None:
        """Wait until the guest has spoken, as proof that it runs and its console is followed."""
        wait_for_greeting(pod.log)


@contextmanager
def new_node() -> Iterator[Node]:
    """A node of its own; all of it is gone afterwards.

    Raises:
        LeftBehind: pods were removed and something of them is still there.
    """
    directory = Path(tempfile.mkdtemp(prefix="vlbench-", dir="/var/tmp"))
    try:
        images = {
            SILENT: make_image(directory / "silent.qcow2", greeting_sector()),
            LOUD: make_image(directory / "loud.qcow2", counting_sector()),
        }
        with Playground(images, directory=directory) as playground, playground.client() as client:
            node = Node(playground, client)
            node.warm_up()
            yield node
            for pod in client.pods():
                client.remove_pod(pod.id)
            left = playground.leftovers()
            if left:
                raise LeftBehind("; ".join(left))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
