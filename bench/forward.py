"""Port-forward through the manager's streaming server, against socat on the same path.

The path ends at a stand-in for the guest, because an emulated guest's own network would be slower
than both and hide the difference. The clients send and take SPDY frames as kubectl does.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.bench import Bench
from bench.figures import paired_interval, paired_ratio
from bench.node import Node, new_node
from bench.row import Row
from bench.stand_in import StandIn, stand_in
from tests.streaming.fakes import traffic
from virtlet.cri import api_pb2 as cri

SIZE = 1 << 27
"""Bytes of one connection."""
BOUND = 0.5
_LIMIT = 120
"""Seconds of one connection at most."""


def measure(bench: Bench) -> list[Row]:
    """Both directions."""
    with new_node() as node, stand_in(node) as guest:
        return [_row(bench, node, guest, role) for role in ("upload", "download")]


def _row(bench: Bench, node: Node, guest: StandIn, role: str) -> Row:
    pairs = []
    rounds = bench.times(8, 2)
    for number in range(-1, rounds):
        bench.step(f"{role}, round {max(0, number) + 1} of {rounds}")
        socat, ours = _through_socat(node, guest, role), _through_us(node, guest, role)
        if number >= 0:  # the first one warms up
            pairs.append((socat, ours))
    low, high = paired_interval(pairs)
    speeds = {
        name: [SIZE / 1e6 / pair[side] for pair in pairs]
        for side, name in enumerate(("socat", "ours"))
    }
    told = "; ".join(
        f"{name} {min(figures):.0f} to {max(figures):.0f} MB/s" for name, figures in speeds.items()
    )
    return Row(
        name=f"port-forward, {role}, against socat",
        value=paired_ratio(pairs),
        bound=BOUND,
        unit="×",
        detail=f"95 %: {low:.2f}–{high:.2f}; {told}; {rounds} rounds, to a stand-in for the guest",
        at_least=True,
        samples={f"{name} MB/s": figures for name, figures in speeds.items()},
    )


def _through_socat(node: Node, guest: StandIn, role: str) -> float:
    with _target(guest, role) as port:
        listen = "TCP-LISTEN:0,bind=127.0.0.1"
        argv = ["socat", "-d", "-d", listen, f"TCP:{guest.address}:{port}"]
        with _running(node.playground.netns, *argv, tell=subprocess.STDOUT) as lines:
            line = next(line for line in lines if "listening on" in line)
            return _seconds(node, role, line.rsplit(":", 1)[1].strip())


def _through_us(node: Node, guest: StandIn, role: str) -> float:
    with _target(guest, role) as port:
        wanted = cri.PortForwardRequest(pod_sandbox_id=guest.pod)
        url = urlsplit(node.client.call("PortForward", wanted).url)
        return _seconds(node, role, str(url.port), url.path, port)


def _seconds(node: Node, role: str, *where: str) -> float:
    client = [sys.executable, "-m", traffic.__name__, "client", role, str(SIZE), *where]
    argv = ["nsenter", f"--net={node.playground.netns}", *client]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, timeout=_LIMIT)
    return float(done.stdout)


@contextmanager
def _target(guest: StandIn, role: str) -> Iterator[str]:
    """The port of somebody who serves one connection where the guest would be."""
    argv = [sys.executable, "-m", "bench.target", guest.address, role, str(SIZE)]
    with _running(guest.netns, *argv) as lines:
        yield next(lines).strip()


@contextmanager
def _running(place: Path, *argv: str, tell: int | None = None) -> Iterator[Iterator[str]]:
    """A process in a namespace for a while, and the lines it prints; `tell` is its stderr."""
    command = ["nsenter", f"--net={place}", *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=tell, text=True) as process:
        try:
            assert process.stdout is not None
            yield iter(process.stdout)
        finally:
            process.kill()
