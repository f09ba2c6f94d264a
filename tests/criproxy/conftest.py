"""Two runtimes, a proxy in front of them, and a client."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.criproxy.fakes.proxy import VM, Client, RunningProxy
from tests.criproxy.fakes.runtime import FakeRuntime


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short directory: socket paths have 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="cp-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def containerd(run_dir: Path) -> Iterator[FakeRuntime]:
    """The primary runtime."""
    runtime = FakeRuntime(run_dir / "a.sock", "containerd", handlers=("", "runc")).start()
    yield runtime
    runtime.stop()


@pytest.fixture
def virtlet(run_dir: Path) -> Iterator[FakeRuntime]:
    """The other runtime."""
    runtime = FakeRuntime(run_dir / "b.sock", VM, handlers=("", "virtlet")).start()
    yield runtime
    runtime.stop()


@pytest.fixture
def start_proxy(run_dir: Path) -> Iterator[Callable[..., RunningProxy]]:
    """Starts proxies; they are stopped at the end."""
    proxies: list[RunningProxy] = []

    def start(sockets: dict[str, Path], name: str = "p.sock", **options: Any) -> RunningProxy:
        proxy = RunningProxy(run_dir / name, sockets, **options)
        proxies.append(proxy)
        return proxy.start()

    yield start
    for proxy in proxies:
        proxy.stop()


@pytest.fixture
def proxy(
    start_proxy: Callable[..., RunningProxy], containerd: FakeRuntime, virtlet: FakeRuntime
) -> RunningProxy:
    """A proxy in front of both."""
    return start_proxy({"containerd": containerd.path, VM: virtlet.path})


@pytest.fixture
def connect() -> Iterator[Callable[[Path | str], Client]]:
    """Makes clients; they are closed at the end."""
    clients: list[Client] = []

    def make(path: Path | str) -> Client:
        clients.append(Client(path))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(proxy: RunningProxy, connect: Callable[[Path | str], Client]) -> Client:
    """A client of the proxy."""
    return connect(proxy.config.listen)
