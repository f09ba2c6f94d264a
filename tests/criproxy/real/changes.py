"""A client that makes containers, runs commands in them and removes them, all the time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real.sides import Pod
from tests.polling import until
from virtlet.cri import api_pb2 as cri

_numbers = itertools.count(1)
_PREFIX = "load"


class Changes:
    """The client.

    Args:
        path: the proxy's socket.
        pod: in which the containers are made.
        guest: a container in which commands run too, or empty.

    Attributes:
        wrong: what commands said instead of what they should.
        codes: of calls that failed.
        good: rounds that went well from end to end.
    """

    def __init__(self, path: Path, pod: Pod, guest: str = "") -> None:
        self.wrong: list[bytes] = []
        self.codes: set[grpc.StatusCode] = set()
        self.good = 0
        self._path = path
        self._pod = pod
        self._guest = guest
        self._stop = threading.Event()

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

    def _tidy(self, client: Client) -> None:
        """Remove what rounds left that were cut short."""
        for container in client.containers().values():
            if container.metadata.name.startswith(_PREFIX):
                request = cri.RemoveContainerRequest(container_id=container.id)
                client.runtime.RemoveContainer(request, timeout=30)

    def _round(self, client: Client) -> None:
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

    def _echo(self, client: Client, container: str) -> None:
        request = cri.ExecSyncRequest(container_id=container, cmd=["echo", "here"], timeout=30)
        said = client.runtime.ExecSync(request, timeout=60).stdout
        if said != b"here\n":
            self.wrong.append(said)

    @contextmanager
    def running(self) -> Iterator[Changes]:
        """Change things meanwhile."""
        thread = threading.Thread(target=self._work)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(100)

    def more(self, rounds: int = 2) -> None:
        """Wait until so many more rounds went well."""
        wanted = self.good + rounds
        until(lambda: self.good >= wanted, timeout=90)
