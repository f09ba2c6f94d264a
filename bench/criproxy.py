"""What the CRI proxy adds to a call, against the direct socket in the same run.

Debian's containerd three times: two behind the proxy with half of the pods each, and one with all
of them as the direct opponent for lists. Direct and proxied calls take turns, so that whatever
else the machine does meets both alike.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median

from attrs import frozen

from bench.bench import Bench
from bench.figures import ratio, ratio_interval
from bench.row import Row
from tests.criproxy.fakes.command import ProxyProcess
from tests.criproxy.fakes.proxy import Client
from tests.criproxy.real.containerd import Containerd
from tests.criproxy.real.images import BUSYBOX
from tests.criproxy.real.node import Node
from virtlet.cri import api_pb2 as cri

ADDED_MEDIAN, ADDED_P99 = 0.7, 3.0
"""ms that a unary call may cost more."""
LISTED = 2.0
"""Times the direct call that a merged list may take."""
MEMORY = 50.0
"""MB."""
SLOW = 63
"""Calls that hang while the 64th is measured."""
_OTHER = "other.example"
_MB = 1000 * 1000

Call = Callable[[Client], object]


@frozen
class World:
    """The runtimes, the proxy, and clients of them."""

    node: Node
    proxy: ProxyProcess
    direct: Client
    """Of the proxy's primary."""
    proxied: Client
    alone: Client
    """Of the runtime that has all pods."""
    container: str
    """Runs on the primary."""


@frozen
class Pair:
    """Durations of one call by both ways, in ms."""

    direct: Sequence[float]
    proxied: Sequence[float]

    def added(self, quantile: float) -> float:
        """What the proxy adds at a quantile."""
        return _quantile(self.proxied, quantile) - _quantile(self.direct, quantile)

    def detail(self) -> str:
        """The figures behind it."""
        return (
            f"median {median(self.direct):.2f} → {median(self.proxied):.2f} ms, 99th "
            f"{_quantile(self.direct, 0.99):.2f} → {_quantile(self.proxied, 0.99):.2f} ms, "
            f"{len(self.direct)} calls each"
        )


def measure(bench: Bench) -> list[Row]:
    """Added latency alone and beside slow calls, merged lists, memory."""
    pods = bench.times(50, 6)
    with _world(bench, pods) as world:
        rows = _unary(bench, world)
        rows.append(_list(bench, world, pods))
        rows += _beside_slow(bench, world)
        rows.append(
            Row(
                name=f"resident memory of the proxy with {pods} pods",
                value=world.proxy.rss() / _MB,
                bound=MEMORY,
                unit="MB",
                detail="after all of the above",
            )
        )
    return rows


def _unary(bench: Bench, world: World) -> list[Row]:
    calls: dict[str, Call] = {
        "Version": _version,
        "ContainerStatus": lambda client: client.runtime.ContainerStatus(
            cri.ContainerStatusRequest(container_id=world.container), timeout=10
        ),
    }
    rows = []
    for name, call in calls.items():
        bench.step(f"{name}, in turns")
        pair = _turns(call, world.direct, world.proxied, bench.times(4000, 200))
        rows += _latency_rows(f"proxy: added to {name}", pair)
    return rows


def _latency_rows(name: str, pair: Pair) -> list[Row]:
    samples = {"direct ms": pair.direct, "proxied ms": pair.proxied}
    return [
        Row(f"{name}, median", pair.added(0.5), ADDED_MEDIAN, "ms", pair.detail(), samples=samples),
        Row(f"{name}, 99th percentile", pair.added(0.99), ADDED_P99, "ms", "as above"),
    ]


def _list(bench: Bench, world: World, pods: int) -> Row:
    bench.step(f"lists of {pods} pods, in turns")
    assert len(world.alone.pods()) == len(world.proxied.pods()) == pods
    pair = _turns(_listed, world.alone, world.proxied, bench.times(1500, 100))
    low, high = ratio_interval(pair.proxied, pair.direct)
    return Row(
        name=f"proxy: list of {pods} pods of two runtimes against one runtime's own",
        value=ratio(pair.proxied, pair.direct),
        bound=LISTED,
        unit="×",
        detail=f"{pair.detail()}; 95 % {low:.2f}–{high:.2f}",
        samples={"direct ms": pair.direct, "proxied ms": pair.proxied},
    )


def _version(client: Client) -> object:
    return client.runtime.Version(cri.VersionRequest(), timeout=10)


def _listed(client: Client) -> object:
    return client.runtime.ListPodSandbox(cri.ListPodSandboxRequest(), timeout=10)


def _beside_slow(bench: Bench, world: World) -> list[Row]:
    """The 64th call while 63 hang: through the proxy all of them, and direct all of them."""
    bench.step(f"one call beside {SLOW} slow ones")
    seconds = bench.times(20, 8)
    slow = cri.ExecSyncRequest(container_id=world.container, cmd=["sleep", str(seconds)])
    found = {}
    for name, client in (("direct", world.direct), ("proxied", world.proxied)):
        hanging = [client.runtime.ExecSync.future(slow) for _ in range(SLOW)]
        # runc starts the commands; only then it is quiet enough to measure.
        time.sleep(seconds / 2)
        assert not any(future.done() for future in hanging)
        found[name] = _times(partial(_version, client), bench.times(1000, 100))
        for future in hanging:
            future.result(timeout=120)
    pair = Pair(found["direct"], found["proxied"])
    return _latency_rows(f"proxy: added to Version beside {SLOW} slow calls", pair)


def _turns(call: Call, direct: Client, proxied: Client, count: int) -> Pair:
    for client in (direct, proxied):
        _times(partial(call, client), 50)
    both: tuple[list[float], list[float]] = ([], [])
    for _ in range(count):
        for client, durations in zip((direct, proxied), both, strict=True):
            durations += _times(partial(call, client), 1)
    return Pair(*both)


def _times(call: Callable[[], object], count: int) -> list[float]:
    durations = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        durations.append(1000 * (time.perf_counter() - started))
    return durations


def _quantile(values: Sequence[float], quantile: float) -> float:
    return sorted(values)[min(len(values) - 1, int(quantile * len(values)))]


@contextmanager
def _world(bench: Bench, pods: int) -> Iterator[World]:
    node = Node()
    proxy = ProxyProcess(node.dir / "p.sock")
    clients: list[Client] = []
    try:
        bench.step("three containerds")
        runtimes = [Containerd(node, name, i) for i, name in enumerate("abc", 1)]
        for runtime in runtimes:
            runtime.start().load_images()
        first, second, third = (runtime.socket for runtime in runtimes)
        proxy = ProxyProcess(
            node.dir / "p.sock",
            "--connect",
            f"{first},{_OTHER}:{second}",
            "--state-dir",
            str(node.dir / "s"),
        ).start()
        clients = [Client(path) for path in (first, proxy.listen, third)]
        direct, proxied, alone = clients
        shares = ((proxied, "", pods - pods // 2), (proxied, _OTHER, pods // 2), (alone, "", pods))
        made = 0
        container = ""
        for client, target, count in shares:
            with ThreadPoolExecutor(4) as pool:
                for pod in pool.map(
                    lambda i, client=client, target=target: _pod(node, client, target, i),
                    range(count),
                ):
                    container = container or _container(client, pod)
                    made += 1
                    bench.step(f"pod {made} of {2 * pods}")
        yield World(node, proxy, direct, proxied, alone, container)
    finally:
        for client in clients:
            client.close()
        proxy.stop()
        node.stop()


def _pod(node: Node, client: Client, target: str, number: int) -> str:
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(
            name=f"pod{number}", uid=f"{target}{number}", namespace="bench"
        ),
        labels={"io.kubernetes.pod.name": f"pod{number}", "io.kubernetes.pod.namespace": "bench"},
        annotations={"kubernetes.io/config.source": "api"},
        linux=cri.LinuxPodSandboxConfig(cgroup_parent=node.cgroup),
    )
    if target:
        config.annotations["kubernetes.io/target-runtime"] = target
    answer = client.runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=120)
    return str(answer.pod_sandbox_id)


def _container(client: Client, pod: str) -> str:
    """A running container in a pod."""
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="main"),
        image=cri.ImageSpec(image=BUSYBOX),
        command=["sleep", "1000000"],
    )
    request = cri.CreateContainerRequest(
        pod_sandbox_id=pod, config=config, sandbox_config=cri.PodSandboxConfig()
    )
    request.sandbox_config.metadata.name = "pod"
    container = str(client.runtime.CreateContainer(request).container_id)
    client.runtime.StartContainer(cri.StartContainerRequest(container_id=container))
    return container
