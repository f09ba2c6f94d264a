"""Clients that list all the time, as a kubelet does, and check what they see."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from tests.criproxy.fakes.proxy import Client
from tests.polling import until


class Load:
    """The clients.

    Args:
        path: the proxy's socket.
        pods: sandbox id to container id of all that has to be listed.
        alone: whether nothing else may be listed.

    Attributes:
        wrong: lists that were not as they should be.
        errors: messages of calls that failed.
        good: lists that were right.
    """

    def __init__(self, path: Path, pods: Mapping[str, str], *, alone: bool = True) -> None:
        self.wrong: list[object] = []
        self.errors: list[str] = []
        self.good = 0
        self._path = path
        self._pods = set(pods)
        self._containers = set(pods.values())
        self._alone = alone
        self._stop = threading.Event()

    def _work(self) -> None:
        client = Client(self._path)
        while not self._stop.is_set():
            try:
                pods, containers = client.pods(), set(client.containers())
            except grpc.RpcError as error:
                self.errors.append(f"{error.code()}: {error.details()}")
                continue
            if self._right(pods, self._pods) and self._right(containers, self._containers):
                self.good += 1
            else:
                self.wrong.append((pods, containers))
        client.close()

    def _right(self, listed: set[str], wanted: set[str]) -> bool:
        return listed == wanted if self._alone else listed >= wanted

    @contextmanager
    def running(self) -> Iterator[Load]:
        """Load from four clients."""
        threads = [threading.Thread(target=self._work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(20)

    def more(self, lists: int = 30) -> None:
        """Wait until so many more lists were right."""
        wanted = self.good + lists
        until(lambda: self.good >= wanted, timeout=30)
