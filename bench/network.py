"""The network of emulated guests, against a bare tap of the same emulator.

The bare tap is that of another pod, taken out of its bridge: it has the gateway's address itself,
without filters, bridge and veth. Guests are asked by turns, so that one emulator works at a time;
two where a guest speaks to another one. Bare, these two are the ports of one plain bridge.
"""

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_interface
from pathlib import Path
from statistics import median

from attrs import frozen

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio
from bench.row import Row
from virtlet.cli.client import Client
from virtlet.cli.manifest import read_manifest
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.host.commands import run

BOUND = 0.95
SIZE = 1 << 23
"""Bytes of one transfer."""
ASKED = 300
"""Requests in one go."""
_REQUEST = bytes(64)
_ROOT = Path(__file__).parents[1]
_TINY = _ROOT / "build" / "tiny.qcow2"
_MANIFEST = _ROOT / "examples" / "pods" / "tiny.yaml"
_MEMORY = 256 << 20
_BOOT = 180
"""Seconds; five guests boot side by side."""
_LIMIT = 120.0
"""Seconds of one transfer at most."""
_ECHO, _SINK = 7, 9
"""Ports that guests listen on."""
BRIDGED, REDIRECTED, BARE = "bridged", "redirected", "bare tap"


@frozen
class _Guest:
    """A guest, and who speaks to it."""

    client: Client
    vm: str
    address: str
    namespace: Path
    """The pod's."""
    far: Path
    """The namespace of what has the gateway's address."""
    gateway: str

    def sh(self, script: str) -> str:
        """Run a script in the guest."""
        request = cri.ExecSyncRequest(
            container_id=self.vm, cmd=["sh", "-c", script], timeout=int(_LIMIT)
        )
        reply = self.client.call("ExecSync", request, timeout=_LIMIT + 10)
        if reply.exit_code:
            raise OSError(f"a guest's script failed: {reply.stderr.decode(errors='replace')}")
        return str(reply.stdout.decode())


def measure(bench: Bench) -> list[Row]:
    """Both directions and requests of the node, and one direction between guests."""
    with Playground({"tiny": _TINY}) as node, node.client() as client:
        bench.step("five guests boot")
        kinds = (BRIDGED, REDIRECTED, BARE, BRIDGED, BARE)
        guests = [_boot(node, client, f"guest{n}", kind) for n, kind in enumerate(kinds)]
        for guest in guests:
            guest.sh(f"(nc -ll -p {_ECHO} -e cat) >/dev/null 2>&1 &")
            take = f"'head -c {SIZE} >/dev/null; echo taken'"
            guest.sh(f"(nc -ll -p {_SINK} -e sh -c {take}) >/dev/null 2>&1 &")
        sides = dict(zip(kinds, guests[:3], strict=False))
        _make_bare(guests[2])
        rows = []
        for title, work in (
            ("guest to node", _upload),
            ("node to guest", _download),
            ("requests of the node", _requests),
        ):
            found = _by_turns(bench, title, {kind: _bound(work, g) for kind, g in sides.items()})
            rows += [_row(title, kind, found) for kind in (BRIDGED, REDIRECTED)]
        _join(guests[2], guests[4])
        between = {
            BRIDGED: lambda: _between(guests[0], guests[3]),
            BARE: lambda: _between(guests[2], guests[4]),
        }
        rows.append(_row("guest to guest", BRIDGED, _by_turns(bench, "guest to guest", between)))
    return rows


def _bound(work: Callable[[_Guest], float], guest: _Guest) -> Callable[[], float]:
    return lambda: work(guest)


def _by_turns(
    bench: Bench, title: str, sides: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in sides}
    rounds = bench.times(12, 2)
    for number in range(-1, rounds):
        bench.step(f"{title}, round {max(0, number) + 1} of {rounds}")
        # In another order each time, as who comes first may find a colder machine.
        for name in list(sides) if number % 2 else reversed(list(sides)):
            figure = sides[name]()
            if number >= 0:  # the first round warms up
                found[name].append(figure)
    return found


def _row(title: str, kind: str, found: Mapping[str, Sequence[float]]) -> Row:
    pairs = list(zip(found[kind], found[BARE], strict=True))
    low, high = paired_interval(pairs)
    unit = "requests/s" if "requests" in title else "MB/s"
    return Row(
        name=f"{title}, {kind}, against a bare tap",
        value=paired_ratio(pairs),
        bound=BOUND,
        unit="×",
        detail=(
            f"95 %: {low:.2f}–{high:.2f}; {median(found[kind]):.0f} {unit}, bare "
            f"{median(found[BARE]):.0f}; {len(pairs)} rounds, emulated guests"
        ),
        at_least=True,
        samples={f"{name} {unit}": found[name] for name in (kind, BARE)},
    )


def _boot(node: Playground, client: Client, name: str, kind: str) -> _Guest:
    manifest = read_manifest(_MANIFEST, node.log_root)
    pod = manifest.pod
    pod.metadata.name = pod.hostname = name
    pod.metadata.uid = f"uid-{name}"
    pod.log_directory = str(node.log_root / name)
    if kind == REDIRECTED:
        pod.annotations["VirtletNicAttachment"] = "redirect"
    manifest.container.linux.resources.memory_limit_in_bytes = _MEMORY
    pod_id = client.run_pod(pod)
    client.pull(manifest.container.image.image)
    vm = client.create(pod_id, manifest.container, pod)
    client.start(vm)
    request = cri.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
    info = json.loads(client.call("PodSandboxStatus", request).info["info"])
    own = ip_interface(info["interfaces"][0]["addresses"][0])
    namespace = Path(info["netns"])
    waiting = cri.ExecSyncRequest(container_id=vm, cmd=["true"], timeout=_BOOT)
    client.call("ExecSync", waiting, timeout=_BOOT + 10)
    return _Guest(
        client=client,
        vm=vm,
        address=str(own.ip),
        namespace=namespace,
        far=namespace if kind == BARE else node.netns,
        gateway=f"{next(own.network.hosts())}/{own.network.prefixlen}",
    )


def _make_bare(guest: _Guest) -> None:
    """Give the gateway's address to the tap itself."""

    def change() -> None:
        _ip("link", "set", "vtap0", "nomaster")
        _strip()
        _ip("address", "add", guest.gateway, "dev", "vtap0")

    netns.inside(guest.namespace, change)
    guest.sh("ip neigh flush all")


def _strip() -> None:
    run(["nft", "flush", "ruleset"])
    _ip("link", "delete", "vbr0")
    _ip("link", "set", "eth0", "down")


def _join(guest: _Guest, other: _Guest) -> None:
    """Make the taps of two guests the ports of a plain bridge, which has the gateway's address."""

    def lead() -> None:
        _strip()
        _ip("link", "set", "vtap0", "netns", str(guest.namespace), "name", "vtap1")

    def change() -> None:
        _ip("address", "flush", "dev", "vtap0")
        _ip("link", "add", "plain0", "type", "bridge")
        for name in ("vtap0", "vtap1"):
            _ip("link", "set", name, "master", "plain0", "up")
        _ip("address", "add", guest.gateway, "dev", "plain0")
        _ip("link", "set", "plain0", "up")

    netns.inside(other.namespace, lead)
    netns.inside(guest.namespace, change)
    for each in (guest, other):
        each.sh("ip neigh flush all")


def _ip(*arguments: str) -> None:
    run(["ip", *arguments])


def _upload(guest: _Guest) -> float:
    """Megabytes per second that the node takes of a guest."""
    with _connected(guest, f"head -c {SIZE} /dev/zero") as connection:
        began, taken, buffer = time.perf_counter(), 0, bytearray(1 << 18)
        while got := connection.recv_into(buffer):
            taken += got
        took = time.perf_counter() - began
    if taken != SIZE:
        raise OSError(f"a guest sent {taken} bytes of {SIZE}")
    return SIZE / 1e6 / took


def _download(guest: _Guest) -> float:
    """Megabytes per second that a guest takes of the node, until it has all of it."""
    with _connected(guest, f"sh -c 'head -c {SIZE} >/dev/null; echo taken'") as connection:
        began = time.perf_counter()
        connection.sendall(bytes(SIZE))
        if not connection.recv(1):
            raise OSError("a guest ended the connection")
        return SIZE / 1e6 / (time.perf_counter() - began)


@contextmanager
def _connected(guest: _Guest, program: str) -> Iterator[socket.socket]:
    """A connection of a guest's program with what has the gateway's address."""

    def listen() -> socket.socket:
        return socket.create_server((guest.gateway.split("/")[0], 0))

    with netns.inside(guest.far, listen) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(_LIMIT)
        address, port = listener.getsockname()
        asked: Future[str] = pool.submit(guest.sh, f"nc {address} {port} -e {program}")
        connection, _ = listener.accept()
        connection.settimeout(_LIMIT)
        with connection:
            yield connection
        asked.result()


def _requests(guest: _Guest) -> float:
    """Requests per second that a guest answers, one after the other."""

    def connect() -> socket.socket:
        return socket.create_connection((guest.address, _ECHO), _LIMIT)

    with netns.inside(guest.far, connect) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        began = time.perf_counter()
        for _ in range(ASKED):
            connection.sendall(_REQUEST)
            left = len(_REQUEST)
            while left:
                got = len(connection.recv(left))
                if not got:
                    raise OSError("a guest ended the connection")
                left -= got
        return ASKED / (time.perf_counter() - began)


def _between(guest: _Guest, other: _Guest) -> float:
    """Megabytes per second from one guest to another, by the sender's clock."""
    script = (
        f"read begin _ </proc/uptime;"
        f"nc {other.address} {_SINK} -e sh -c 'head -c {SIZE} /dev/zero; read taken';"
        "read end _ </proc/uptime; echo $begin $end"
    )
    begin, end = map(float, guest.sh(script).split())
    return SIZE / 1e6 / (end - begin)
