"""Who is let at a screen, in what order, and what an emulator that does not answer holds up."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field, frozen

from tests.fakes import models
from tests.fakes.hypervisor import FakeHypervisor, Faults
from virtlet.core.guest_sessions.attach_and_forward import GuestDialer
from virtlet.core.guest_sessions.screens import OPENING_OF_VM, SCREEN_PORT
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unimplemented
from virtlet.model.network import Network, Nic
from virtlet.streaming.handlers import PortForwardRequest


@define
class Screen(FakeHypervisor):
    """Lets viewers in; the other ends of their connections are kept."""

    viewers: list[socket.socket] = field(factory=list)

    def open_screen(self, vm_id: str) -> socket.socket:
        self.faults.strike("open_screen")
        ours, theirs = socket.socketpair()
        self.viewers.append(ours)
        ours.sendall(vm_id.encode())
        return theirs


@frozen
class Node:
    """The part of a manager's context that is used here, with one pod."""

    store: Store
    hypervisor: FakeHypervisor
    directory: Path

    @property
    def hypervisors(self) -> "Node":
        return self

    def named(self, plugin: str) -> FakeHypervisor:
        assert plugin == "fake"
        return self.hypervisor

    def put(self, video: str, phase: VmPhase = VmPhase.RUNNING, attempt: int = 0) -> str:
        """Store a VM of the pod; returns its id."""
        machine = models.machine(self.directory)
        vm = evolve(machine.vm, id=f"{attempt:032x}", created_at=attempt)
        flavor = evolve(machine.flavor, video=video)
        machine = evolve(machine, vm=vm, flavor=flavor)
        self.store.put_vm(VmRecord(vm, phase, "fake", machine))
        return vm.id

    def dialer(self) -> GuestDialer:
        context: Any = self
        return GuestDialer(context)


async def _dial(dialer: GuestDialer, port: int = SCREEN_PORT) -> socket.socket:
    return await dialer.dial(PortForwardRequest(sandbox_id="a" * 32), port)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    store = Store(tmp_path / "db")
    pod = models.pod(tmp_path)
    # Nobody serves ports of loopback's last address.
    nic = Nic(name="eth0", mac="02:00:00:00:00:01", mtu=1500, addresses=("127.255.255.254/32",))
    store.put_pod(PodRecord(pod, PodPhase.READY, Network(netns=None, nics=(nic,))))
    screen = Screen(Faults())
    yield Node(store, screen, tmp_path)
    for viewer in screen.viewers:
        viewer.close()
    store.close()


def test_the_port_of_vnc_leads_to_the_screen_of_the_vm_that_runs(node: Node) -> None:
    node.put("vga", VmPhase.EXITED, attempt=3)
    running = node.put("virtio", attempt=2)
    with _run(_dial(node.dialer())) as connection:
        assert connection.recv(64).decode() == running


def test_other_ports_lead_to_the_guest(node: Node) -> None:
    node.put("vga")
    with pytest.raises(ConnectionRefusedError):
        _run(_dial(node.dialer(), SCREEN_PORT + 1))


def test_without_a_screen_the_port_is_the_guests(node: Node) -> None:
    node.put("")
    with pytest.raises(
        FailedPrecondition, match="no screen, as its flavor has no `video`.*refused"
    ):
        _run(_dial(node.dialer()))
    with (
        socket.create_server(("127.255.255.254", SCREEN_PORT)) as guest,
        _run(_dial(node.dialer())) as connection,
    ):
        assert connection.getpeername() == guest.getsockname()


def test_a_vm_that_does_not_run_shows_no_screen(node: Node) -> None:
    node.put("vga", VmPhase.EXITED)
    with pytest.raises(FailedPrecondition, match=r"VM default/web/guest .* does not run"):
        _run(_dial(node.dialer()))


def test_a_hypervisor_that_shows_none_is_named(node: Node, tmp_path: Path) -> None:
    node.put("vga")
    plain = evolve(node, hypervisor=FakeHypervisor(Faults()))
    with pytest.raises(Unimplemented, match="fake shows no screens"):
        _run(_dial(plain.dialer()))


def test_an_emulator_that_does_not_answer_holds_up_its_own_screen_alone(node: Node) -> None:
    """What comes for viewers that have left is closed."""
    node.put("vga")
    answers = node.hypervisor.faults.stuck["open_screen"] = threading.Event()
    screen: Any = node.hypervisor

    async def work() -> None:
        dialer = node.dialer()
        waiting = [asyncio.create_task(_dial(dialer)) for _ in range(OPENING_OF_VM)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="has not let the last viewers"):
            await _dial(dialer)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        # Its threads still wait.
        with pytest.raises(ResourceExhausted):
            await _dial(dialer)
        answers.set()
        while True:
            try:
                connection = await _dial(dialer)
            except ResourceExhausted:
                await asyncio.sleep(0.01)
            else:
                break
        connection.close()

    _run(work())
    assert len(screen.viewers) == OPENING_OF_VM + 1
    for viewer in screen.viewers:
        viewer.settimeout(60)
        with contextlib.suppress(ConnectionResetError):  # it left with something unread
            assert viewer.recv(64) == b""
