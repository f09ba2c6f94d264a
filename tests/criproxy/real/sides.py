"""A runtime behind the proxy as the tests on real runtimes see it, whatever it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen

from tests.criproxy.fakes.proxy import Client
from tests.polling import until
from virtlet.cli.manifest import pod_manifest
from virtlet.cri import api_pb2 as cri

_numbers = itertools.count(1)


@frozen(kw_only=True)
class Side:
    """One runtime.

    Args:
        name: as the proxy calls it.
        socket: its own socket.
        target: value of the target-runtime annotation; empty for the primary.
        image: name of the image of its pods, as a user writes it.
        cgroup_parent: of its pods.
        pid: of a process in the network in which its streaming URLs are meant.
        kill: kills the runtime, but not its pods.
        start: starts it again.
    """

    name: str
    socket: Path
    target: str
    image: str
    cgroup_parent: str
    logs: Path
    pid: int
    kill: Callable[[], Any]
    start: Callable[[], Any]


class Pod:
    """A pod with one container, made through a client of the proxy.

    Args:
        client: of the proxy.
        side: where it is to run.
        script: what its shell runs.
        tty, stdin: of the container.
    """

    def __init__(
        self,
        client: Client,
        side: Side,
        script: str = "echo hello; exec sleep 1000",
        *,
        tty: bool = False,
        stdin: bool = False,
    ) -> None:
        self.client = client
        self.side = side
        number = next(_numbers)
        annotations = {"kubernetes.io/target-runtime": side.target} if side.target else {}
        main = {"name": "main", "image": side.image, "command": ["sh", "-c", script]}
        manifest = pod_manifest(
            {
                "kind": "Pod",
                "metadata": {
                    "name": f"pod{number}",
                    "uid": f"uid-{number}",
                    "labels": {"test": "criproxy"},
                    "annotations": annotations,
                },
                "spec": {"containers": [{**main, "tty": tty, "stdin": stdin}]},
            },
            side.logs,
        )
        self.config = manifest.pod
        self.config.linux.cgroup_parent = side.cgroup_parent
        self.id = str(
            client.runtime.RunPodSandbox(
                cri.RunPodSandboxRequest(config=self.config), timeout=60
            ).pod_sandbox_id
        )
        image = client.image.ImageStatus(cri.ImageStatusRequest(image=manifest.image())).image
        container = self.container_config = manifest.attempt(0, image.id)
        self.container = str(
            client.runtime.CreateContainer(
                cri.CreateContainerRequest(
                    pod_sandbox_id=self.id, config=container, sandbox_config=self.config
                )
            ).container_id
        )

    def start(self) -> Pod:
        """Start the container."""
        self.client.runtime.StartContainer(cri.StartContainerRequest(container_id=self.container))
        return self

    @property
    def log(self) -> str:
        """The container's log so far."""
        path = Path(self.config.log_directory, "main", "0.log")
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, text: str) -> None:
        """Wait until the log has this."""
        until(lambda: text in self.log)

    def status(self) -> Any:
        """The container's status."""
        request = cri.ContainerStatusRequest(container_id=self.container)
        return self.client.runtime.ContainerStatus(request).status

    def exec(self, *command: str) -> Any:
        """Run a command in the container."""
        request = cri.ExecSyncRequest(container_id=self.container, cmd=command, timeout=20)
        return self.client.runtime.ExecSync(request)

    def remove(self) -> None:
        """Stop and remove the pod."""
        stop = cri.StopPodSandboxRequest(pod_sandbox_id=self.id)
        self.client.runtime.StopPodSandbox(stop, timeout=60)
        remove = cri.RemovePodSandboxRequest(pod_sandbox_id=self.id)
        self.client.runtime.RemovePodSandbox(remove, timeout=60)
