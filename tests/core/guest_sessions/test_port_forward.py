"""Reaching a guest by whichever of its addresses answers, in a network of the test's own."""

import asyncio
import contextlib
import errno
import gc
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from attrs import frozen

from tests.fakes import models
from virtlet.core.guest_sessions.attach_and_forward import HEAD_START, GuestDialer
from virtlet.core.store.records import PodPhase, PodRecord
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition, NotFound
from virtlet.host import netns
from virtlet.host.links import Links
from virtlet.model.network import Network, Nic
from virtlet.streaming.handlers import PortForwardRequest

FOUR, SIX = "10.99.0.2", "fd99::2"
NOWHERE = "fd98::2"
"""There is no route to it."""
PORT = 80


@frozen
class Guest:
    """A pod's record, and a namespace in which its addresses are."""

    namespace: Path
    store: Store

    def put(self, phase: PodPhase = PodPhase.READY, addresses: tuple[str, ...] = ()) -> str:
        """Store the pod with its addresses; returns its id."""
        pod = models.pod(self.namespace.parent)
        interface = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=addresses)
        self.store.put_pod(PodRecord(pod, phase, Network(netns=None, nics=(interface,))))
        return pod.id

    def refuse(self, rules: str) -> None:
        """Let the network treat packets as rules of nft's output chain say."""
        table = f"table inet t {{ chain o {{ type filter hook output priority 0; {rules} }}; }}\n"
        argv = ("nft", "-f", "-")
        netns.inside(self.namespace, lambda: subprocess.run(argv, input=table.encode(), check=True))

    def dial(self, port: int = PORT) -> str:
        """The address that a connection leads to."""
        context: Any = self  # only its store is used
        request = PortForwardRequest(sandbox_id=self.store_pod, ports=(port,))

        async def reach() -> str:
            async with asyncio.timeout(20):
                connection = await GuestDialer(context).dial(request, port)
            with connection:
                await asyncio.sleep(0)  # lets go of those that were not first
                return str(connection.getpeername()[0])

        return netns.inside(self.namespace, lambda: uvloop.run(reach()))

    @property
    def store_pod(self) -> str:
        """The pod's id."""
        return next(iter(self.store.pods))


def _addresses() -> None:
    with Links() as net:
        net.set("lo", up=True)
        for address in (f"{FOUR}/32", f"{SIX}/128"):
            net.add_address("lo", address)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    """A guest with both addresses, which nobody serves yet."""
    namespace = tmp_path / "netns"
    netns.create(namespace)
    netns.inside(namespace, _addresses)
    store = Store(tmp_path / "db")
    guest = Guest(namespace, store)
    guest.put(addresses=(f"{FOUR}/24", f"{SIX}/64"))
    yield guest
    store.close()
    netns.delete(namespace)


@pytest.fixture
def serve(guest: Guest) -> Iterator[Callable[[str], None]]:
    """Lets the guest serve its port at an address."""
    listeners: list[socket.socket] = []

    def listen(address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = netns.inside(guest.namespace, lambda: socket.socket(family))
        listener.bind((address, PORT))
        listener.listen()
        listeners.append(listener)

    yield listen
    for listener in listeners:
        listener.close()


Serve = Callable[[str], None]


def test_the_primary_address_is_preferred(guest: Guest, serve: Serve) -> None:
    serve(FOUR)
    serve(SIX)
    assert guest.dial() == FOUR


@pytest.mark.parametrize(("silent", "serving", "family"), [(FOUR, SIX, "ip"), (SIX, FOUR, "ip6")])
def test_an_address_that_is_silent_hides_no_other(
    guest: Guest, serve: Serve, silent: str, serving: str, family: str
) -> None:
    serve(serving)
    guest.put(addresses=(f"{silent}/32", f"{serving}/32"))
    guest.refuse(f"{family} daddr {silent} tcp dport {PORT} drop;")
    started = time.monotonic()
    assert guest.dial() == serving
    assert time.monotonic() - started < 10


def test_an_address_that_refuses_costs_no_time(guest: Guest, serve: Serve) -> None:
    serve(SIX)
    started = time.monotonic()
    for _ in range(20):
        assert guest.dial() == SIX
    assert time.monotonic() - started < 20 * HEAD_START * 0.9


def test_an_answer_is_waited_for_where_another_address_refuses(guest: Guest, serve: Serve) -> None:
    """The second try of a connection's first packet, which TCP sends after a second, arrives."""
    serve(FOUR)
    guest.refuse(f"ip daddr {FOUR} tcp flags syn limit rate over 1/second burst 1 packets drop;")
    guest.dial()  # uses up the rate
    started = time.monotonic()
    assert guest.dial() == FOUR
    assert time.monotonic() - started > 0.5


def test_the_primary_address_says_why_nobody_answers(guest: Guest) -> None:
    for addresses, why in (
        ((FOUR, NOWHERE), errno.ECONNREFUSED),
        ((NOWHERE, FOUR), errno.ENETUNREACH),
    ):
        guest.put(addresses=addresses)
        with pytest.raises(OSError, match=f"Errno {why}"):
            guest.dial()


def _sockets() -> set[str]:
    """The sockets that this process has open; those of other threads may go at any time."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry.path))
    return {name for name in found if name.startswith("socket:")}


def test_the_connections_that_came_second_are_closed(guest: Guest, serve: Serve) -> None:
    serve(SIX)
    guest.refuse(f"ip daddr {FOUR} drop;")
    gc.collect()
    before = _sockets()
    for _ in range(3):
        guest.dial()
    assert _sockets() <= before


def test_a_pod_that_is_unknown_or_stopped_or_has_no_address_is_refused(guest: Guest) -> None:
    context: Any = guest
    dialer = GuestDialer(context)
    with pytest.raises(NotFound, match="there is no pod sandbox"):
        dialer.check("unknown")
    for phase, addresses in ((PodPhase.NOT_READY, (FOUR,)), (PodPhase.READY, ())):
        with pytest.raises(FailedPrecondition, match="is stopped or has no address"):
            dialer.check(guest.put(phase, addresses))
