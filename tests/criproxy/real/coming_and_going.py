"""A client that makes and removes pods all the time, and checks that lists say what it was told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.criproxy.fakes.proxy import Client
from tests.polling import until
from virtlet.cli.manifest import PodManifest
from virtlet.cri import api_pb2 as cri


class ComingAndGoing:
    """The client.

    Args:
        path: the proxy's socket.
        manifest: makes a new pod's; its image is there.

    Attributes:
        wrong: what lists said other than the answers to the changes before.
        codes: of changes that failed; lists must not.
        good: rounds that went well from end to end.
    """

    def __init__(self, path: Path, manifest: Callable[[], PodManifest]) -> None:
        self.wrong: list[str] = []
        self.codes: set[grpc.StatusCode] = set()
        self.good = 0
        self._path = path
        self._manifest = manifest
        self._stop = threading.Event()
        self._uids: set[str] = set()

    def _work(self) -> None:
        client = Client(self._path)
        while not self._stop.is_set():
            try:
                self._round(client)
            except grpc.RpcError as error:
                self.codes.add(error.code())
                self._stop.wait(0.1)
            else:
                self.good += 1
        self._tidy(client)
        client.close()

    def _round(self, client: Client) -> None:
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

    @contextmanager
    def running(self) -> Iterator[ComingAndGoing]:
        """Let pods come and go meanwhile."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(200)

    def more(self, rounds: int = 2) -> None:
        """Wait until so many more rounds went well."""
        wanted = self.good + rounds
        until(lambda: self.good >= wanted, timeout=90)
