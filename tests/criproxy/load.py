"""Clients of the proxy that work all the time while a test lets things go wrong."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import grpc

from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real.sides import Pod
from tests.polling import until
from virtlet.cli.manifest import PodManifest
from virtlet.cri import api_pb2 as cri

_numbers = itertools.count(1)
_PREFIX = "load"


class _Rounds:
    """A client, or several, that does rounds until the end.

    Args:
        path: the proxy's socket.

    Attributes:
        wrong: answers that were not as they should be.
        codes: of calls that failed.
        errors: their messages.
        good: rounds that went well from end to end.
    """

    clients = 1
    pause = 0.1
    """Seconds after a failure."""

    def __init__(self, path: Path) -> None:
        self.wrong: list[object] = []
        self.codes: set[grpc.StatusCode] = set()
        self.errors: list[str] = []
        self.good = 0
        self._path = path
        self._stop = threading.Event()

    def _round(self, client: Client) -> bool:
        """Do one, and return whether it is a good one."""
        raise NotImplementedError

    def _tidy(self, client: Client) -> None:
        """Remove what rounds left that were cut short."""

    def _work(self) -> None:
        with Client(self._path) as client:
            while not self._stop.is_set():
                try:
                    self.good += self._round(client)
                except grpc.RpcError as error:
                    self.codes.add(error.code())
                    self.errors.append(f"{error.code()}: {error.details()}")
                    self._stop.wait(self.pause)
            self._tidy(client)

    @contextmanager
    def running(self) -> Iterator[Self]:
        """Work meanwhile."""
        threads = [threading.Thread(target=self._work) for _ in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(200)

    def more(self, rounds: int = 2) -> None:
        """Wait until so many more rounds went well."""
        wanted = self.good + rounds
        until(lambda: self.good >= wanted, f"{rounds} good rounds", 90)


class Load(_Rounds):
    """Clients that list, as a kubelet does, and check what they see.

    Args:
        path: the proxy's socket.
        pods: sandbox id to container id of all that has to be listed.
        alone: whether nothing else may be listed.
    """

    clients = 4
    pause = 0.0

    def __init__(self, path: Path, pods: Mapping[str, str], *, alone: bool = True) -> None:
        super().__init__(path)
        self._pods = set(pods)
        self._containers = set(pods.values())
        self._alone = alone

    def _round(self, client: Client) -> bool:
        pods, containers = client.pods(), set(client.containers())
        right = self._right(pods, self._pods) and self._right(containers, self._containers)
        if not right:
            self.wrong.append((pods, containers))
        return right

    def _right(self, listed: set[str], wanted: set[str]) -> bool:
        return listed == wanted if self._alone else listed >= wanted

    def more(self, rounds: int = 30) -> None:
        """Wait until so many more lists were right."""
        super().more(rounds)


class Changes(_Rounds):
    """A client that makes containers, runs commands in them and removes them.

    Args:
        path: the proxy's socket.
        pod: in which the containers are made.
        guest: a container in which commands run too, or empty.
    """

    def __init__(self, path: Path, pod: Pod, guest: str = "") -> None:
        super().__init__(path)
        self._pod = pod
        self._guest = guest

    def _tidy(self, client: Client) -> None:
        """Remove what rounds left that were cut short."""
        for container in client.containers().values():
            if container.metadata.name.startswith(_PREFIX):
                request = cri.RemoveContainerRequest(container_id=container.id)
                client.runtime.RemoveContainer(request, timeout=30)

    def _round(self, client: Client) -> bool:
        config = cri.ContainerConfig()
        config.CopyFrom(self._pod.container_config)
        config.metadata.name = f"{_PREFIX}{next(_numbers)}"
        config.command[:] = ["sleep", "1000"]
        config.log_path = f"{config.metadata.name}.log"
        request = cri.CreateContainerRequest(
            pod_sandbox_id=self._pod.id, config=config, sandbox_config=self._pod.config
        )
        container = client.runtime.CreateContainer(request, timeout=30).container_id
        named = {"container_id": container}
        client.runtime.StartContainer(cri.StartContainerRequest(**named), timeout=30)
        self._echo(client, container)
        if self._guest:
            self._echo(client, self._guest)
        client.runtime.StopContainer(cri.StopContainerRequest(**named), timeout=30)
        client.runtime.RemoveContainer(cri.RemoveContainerRequest(**named), timeout=30)
        return True

    def _echo(self, client: Client, container: str) -> None:
        request = cri.ExecSyncRequest(container_id=container, cmd=["echo", "here"], timeout=30)
        said = client.runtime.ExecSync(request, timeout=60).stdout
        if said != b"here\n":
            self.wrong.append(said)


class ComingAndGoing(_Rounds):
    """A client that makes and removes pods, and checks that lists say what it was answered.

    Args:
        path: the proxy's socket.
        manifest: makes a new pod's; its image is there.
    """

    def __init__(self, path: Path, manifest: Callable[[], PodManifest]) -> None:
        super().__init__(path)
        self._manifest = manifest
        self._uids: set[str] = set()

    def _round(self, client: Client) -> bool:
        manifest = self._manifest()
        self._uids.add(manifest.pod.metadata.uid)
        run = cri.RunPodSandboxRequest(config=manifest.pod, runtime_handler=manifest.handler)
        pod = str(client.runtime.RunPodSandbox(run, timeout=60).pod_sandbox_id)
        self._expect(client, pod, "SANDBOX_READY")
        status = cri.ImageStatusRequest(image=manifest.image())
        image = str(client.image.ImageStatus(status, timeout=60).image.id)
        create = cri.CreateContainerRequest(
            pod_sandbox_id=pod, config=manifest.attempt(0, image), sandbox_config=manifest.pod
        )
        container = str(client.runtime.CreateContainer(create, timeout=60).container_id)
        self._expect(client, pod, "SANDBOX_READY", container)
        stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod)
        client.runtime.StopPodSandbox(stop, timeout=60)
        self._expect(client, pod, "SANDBOX_NOTREADY", container)
        remove = cri.RemovePodSandboxRequest(pod_sandbox_id=pod)
        client.runtime.RemovePodSandbox(remove, timeout=60)
        self._expect(client, pod, "", container="")
        return True

    def _expect(self, client: Client, pod: str, state: str, container: str = "") -> None:
        """Note what lists say otherwise; also that they fail."""
        try:
            pods = client.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=60).items
            containers = client.containers().values()
        except grpc.RpcError as error:
            self.wrong.append(f"a list failed: {error.code()}: {error.details()}")
            return
        states = [cri.PodSandboxState.Name(p.state) for p in pods if p.id == pod]
        if states != ([state] if state else []):
            self.wrong.append(f"{pod} is listed as {states} instead of {state or 'gone'}")
        ids = [c.id for c in containers if c.pod_sandbox_id == pod]
        if ids != ([container] if container else []):
            self.wrong.append(f"{pod} is listed with {ids} instead of {container or 'nothing'}")

    def _tidy(self, client: Client) -> None:
        """Remove what rounds left that were cut short."""
        for pod in client.runtime.ListPodSandbox(cri.ListPodSandboxRequest()).items:
            if pod.metadata.uid in self._uids:
                stop = cri.StopPodSandboxRequest(pod_sandbox_id=pod.id)
                client.runtime.StopPodSandbox(stop, timeout=60)
                remove = cri.RemovePodSandboxRequest(pod_sandbox_id=pod.id)
                client.runtime.RemovePodSandbox(remove, timeout=60)
