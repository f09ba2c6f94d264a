"""Two real runtimes on a node of their own, and the proxy as a process in front of them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import frozen

from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real.containerd import Containerd
from tests.criproxy.real.images import BUSYBOX
from tests.criproxy.real.node import Node
from tests.criproxy.real.sides import Pod, Side

SECOND = "second.example"


@frozen
class World:
    """What the tests here share."""

    node: Node
    sides: tuple[Side, ...]
    proxy: ProxyProcess


def _side(node: Node, name: str, subnet: int, target: str) -> Side:
    runtime = Containerd(node, name, subnet).start()
    runtime.load_images()
    return Side(
        name=target or "containerd",
        socket=runtime.socket,
        target=target,
        image=f"{target}/{BUSYBOX}" if target else BUSYBOX,
        cgroup_parent=f"{node.cgroup}/{name}",
        logs=runtime.dir / "logs",
        pid=node.pid,
        kill=runtime.kill,
        start=runtime.start,
    )


@pytest.fixture(scope="package")
def world() -> Iterator[World]:
    """The node, its runtimes and the proxy."""
    with Node() as node:
        sides = (_side(node, "a", 1, ""), _side(node, "b", 2, SECOND))
        connect = ",".join(f"{s.name}:{s.socket}" for s in sides)
        listen, state = node.dir / "p.sock", str(node.dir / "s")
        with ProxyProcess(listen, "--connect", connect, "--state-dir", state) as proxy:
            yield World(node, sides, proxy)
            assert proxy.end(signal.SIGTERM) == 0
            assert "traceback" not in proxy.log.read_text()


@pytest.fixture
def client(world: World, connect: Callable[[Path | str], Client]) -> Client:
    """A client of the proxy."""
    return connect(world.proxy.listen)


@pytest.fixture(params=[0, 1], ids=["primary", "second"])
def side(world: World, request: pytest.FixtureRequest) -> Side:
    """Each runtime in turn."""
    chosen: Side = world.sides[request.param]
    return chosen


@pytest.fixture
def make_pod(client: Client) -> Iterator[Callable[..., Pod]]:
    """Makes pods; they are removed at the end."""
    pods: list[Pod] = []

    def make(side: Side, script: str = "echo hello; exec sleep 1000", **options: bool) -> Pod:
        pods.append(Pod(client, side, script, **options))
        return pods[-1]

    yield make
    for pod in pods:
        pod.remove()
