"""Debian's containerd with busybox pods, as the opponent of lists.

It runs in namespaces of its own, as in the tests of the CRI proxy; all of it goes with them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from bench.bench import Bench
from tests.criproxy.real.containerd import Containerd
from tests.criproxy.real.images import BUSYBOX
from tests.criproxy.real.node import Node
from virtlet.cli.client import Client
from virtlet.cri import api_pb2 as cri

_AT_A_TIME = 4


@contextmanager
def busybox_pods(bench: Bench, count: int) -> Iterator[Client]:
    """A client of a containerd that has so many pods, one running container in each."""
    node = Node()
    try:
        runtime = Containerd(node, "lists", 1)
        runtime.start().load_images()
        with Client(runtime.socket) as client:
            with ThreadPoolExecutor(_AT_A_TIME) as threads:
                numbers = range(count)
                for made, _ in enumerate(threads.map(lambda i: _pod(node, client, i), numbers), 1):
                    bench.step(f"containerd's pod {made} of {count}")
            yield client
    finally:
        node.stop()


def _pod(node: Node, client: Client, number: int) -> None:
    name = f"pod{number}"
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="default"),
        hostname=name,
        log_directory=str(node.dir / "logs" / name),
        labels={"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "default"},
        linux=cri.LinuxPodSandboxConfig(cgroup_parent=node.cgroup),
    )
    container = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="guest"),
        image=cri.ImageSpec(image=BUSYBOX),
        command=["sleep", "1000000"],
        log_path="guest/0.log",
        labels={"io.kubernetes.pod.name": name, "io.kubernetes.container.name": "guest"},
    )
    pod_id = client.run_pod(config)
    client.start(client.create(pod_id, container, config))
