"""People at a VM's console by the real hub: why their sessions end, and what those leave behind."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop
from attrs import evolve, frozen

from tests.console.support import Emulator
from tests.core.guest_sessions.world import Received, Sent, session_streams
from tests.fakes import models
from tests.streaming.fakes.api_server import ApiServer
from tests.streaming.fakes.handlers import LoopbackDialer
from tests.streaming.fakes.kubectl import Kubectl
from tests.streaming.fakes.runners import Waiting
from virtlet.console.hub import ConsoleHub
from virtlet.console.live_console import BACKLOG_LIMIT
from virtlet.console.log_writer import ConsoleLogs
from virtlet.core.guest_sessions.attach_and_forward import ConsoleAttacher
from virtlet.core.paths import Paths
from virtlet.core.store.records import PodPhase, PodRecord, VmPhase, VmRecord
from virtlet.core.store.store import Store
from virtlet.core.vm_consoles import VmConsoles
from virtlet.errors import FailedPrecondition, NotFound, ResourceExhausted, Unavailable
from virtlet.streaming import AttachRequest, Handlers, SessionStreams, StreamingServer

REQUEST = AttachRequest(container_id="vm-1", stdin=True, stdout=True)
FLOOD = 64 * BACKLOG_LIMIT
"""More than all buffers between the hub and a client hold."""


class Reading(Received):
    """A client that can wait for what it reads, and may take its time for each piece."""

    def __init__(self, pause: float = 0) -> None:
        super().__init__()
        self.pause = pause
        self.changed = asyncio.Condition()

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(self.pause)
        await super().write(data)
        async with self.changed:
            self.changed.notify_all()

    async def until(self, text: bytes) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: text in self.data)


@frozen
class Scene:
    """A VM with an emulator, and who lets people at its console."""

    attacher: ConsoleAttacher
    hub: ConsoleHub
    guest: Emulator
    end: Callable[[], None]
    """Ends the emulator; idempotent."""
    raw: Path
    store: Store

    def print(self, size: int) -> None:
        """Have the guest print so many bytes."""
        for _ in range(size // 32768):
            self.guest.print(b"x" * 32768)

    async def attach(self, streams: SessionStreams) -> asyncio.Task[None]:
        """Start a session, and see that its reader gets what is printed."""
        session = asyncio.create_task(self.attacher.run(REQUEST, streams))
        reader = streams.stdout
        assert isinstance(reader, Reading)
        while not reader.data:
            self.guest.print(b".")
            await asyncio.sleep(0.02)
        return session


async def paste(scene: Scene) -> asyncio.Task[None]:
    """A session of a client that has pasted more than the guest and all buffers take."""
    keys = Sent(*[b"k" * 65536] * 40, silent=True)
    session = await scene.attach(session_streams(keys, Reading()))
    left = 41
    while len(keys.pieces) < left:
        left = len(keys.pieces)
        await asyncio.sleep(0.2)
    assert left, "all keys were taken"
    return session


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    vm = evolve(models.vm(tmp_path), id="vm-1")
    store, logs, hub = Store(tmp_path / "db"), ConsoleLogs(), ConsoleHub()
    store.put_pod(PodRecord(vm.pod, PodPhase.READY))
    store.put_vm(VmRecord(vm, VmPhase.RUNNING))
    logs.start()
    hub.start()
    consoles = VmConsoles(logs, Paths(tmp_path), -1, -1, disabled=True)
    files = consoles.files(vm)
    files.stem.parent.mkdir(parents=True)
    consoles.prepare(vm)
    context: Any = SimpleNamespace(store=store, consoles=consoles)
    guest, ending = Emulator(files), ExitStack()
    ending.callback(guest.exit)
    yield Scene(ConsoleAttacher(context, hub), hub, guest, ending.close, files.raw, store)
    ending.close()
    hub.stop()
    logs.stop()
    store.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run it, and see that no task and no error nobody looked at is left."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        async with asyncio.timeout(60):
            await work
        assert asyncio.all_tasks() == {asyncio.current_task()}

    uvloop.run(watched())
    assert not complaints


def test_a_client_types_and_reads_until_it_detaches(scene: Scene) -> None:
    async def test() -> None:
        reader = Reading()
        session = await scene.attach(session_streams(Sent(b"ls\n", silent=True), reader))
        assert await asyncio.to_thread(scene.guest.typed, 3) == b"ls\n"
        scene.guest.print(b"file\n")
        await reader.until(b"file\n")
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        assert session.cancelled()

    run(test())


def test_a_session_has_let_go_of_its_client_when_it_ends(scene: Scene) -> None:
    class Slow(Sent):
        let_go = False

        async def read(self, limit: int = 65536) -> bytes:
            try:
                return await super().read(limit)
            finally:
                await asyncio.sleep(0.05)
                self.let_go = not self.pieces

    async def test() -> None:
        keys = Slow(b"\x1d", silent=True)
        await scene.attacher.run(REQUEST, session_streams(keys, Reading()))
        assert keys.let_go
        assert keys.reads == 2

    run(test())


def test_the_detach_key_and_the_end_of_the_vm_are_good_ends(scene: Scene) -> None:
    async def test() -> None:
        await scene.attacher.run(REQUEST, session_streams(Sent(b"\x1d", silent=True), Reading()))
        reader = Reading()
        session = await scene.attach(session_streams(Sent(silent=True), reader))
        scene.guest.print(b"last words")
        scene.end()
        await session
        assert reader.data.endswith(b"last words")

    run(test())


def once(scene: Scene) -> None:
    """Make the VM's input one for a single client, as `kubectl run -i` asks for."""
    record = scene.store.vms["vm-1"]
    config = evolve(record.vm.config, stdin=True, stdin_once=True)
    scene.store.put_vm(evolve(record, vm=evolve(record.vm, config=config)))


@pytest.mark.parametrize(
    ("keys", "typed"),
    [
        (b"echo hello\n", b"echo hello\n\x04"),
        (b"echo hello", b"echo hello\x04\x04"),
        (b"", b"\x04"),
    ],
)
def test_the_end_of_an_input_for_one_client_is_typed_and_ends_the_session_after_the_answer(
    scene: Scene, keys: bytes, typed: bytes
) -> None:
    async def test() -> None:
        once(scene)
        attacher = attacher_with(scene, 3)
        reader = Reading()
        streams = session_streams(Sent(*([keys] if keys else [])), reader)
        session = asyncio.create_task(attacher.run(REQUEST, streams))
        assert await asyncio.to_thread(scene.guest.typed, len(typed)) == typed
        for _ in range(5):
            await asyncio.sleep(0.2)
            scene.guest.print(b"hello\n")
        await session
        assert reader.data == b"hello\n" * 5

    run(test())


def attacher_with(scene: Scene, seconds: float) -> ConsoleAttacher:
    """The scene's attacher with another measure of silence."""
    return ConsoleAttacher(scene.attacher._context, scene.hub, seconds)


@pytest.mark.parametrize("is_once", [True, False])
def test_a_session_goes_on_where_nothing_has_ended_or_the_input_is_for_many(
    scene: Scene, is_once: bool
) -> None:
    async def test() -> None:
        if is_once:
            once(scene)
        reader = Reading()
        streams = session_streams(Sent(silent=is_once), reader)
        session = asyncio.create_task(attacher_with(scene, 0.1).run(REQUEST, streams))
        await asyncio.sleep(0.5)
        scene.guest.print(b"late")
        await reader.until(b"late")
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)

    run(test())


def test_a_client_that_is_too_slow_is_told_so_and_what_to_do(scene: Scene) -> None:
    async def test() -> None:
        session = await scene.attach(session_streams(Sent(silent=True), Reading(0.05)))
        while not session.done():
            await asyncio.to_thread(scene.print, BACKLOG_LIMIT)
            await asyncio.sleep(0.02)
        with pytest.raises(ResourceExhausted, match=r"vm-1.*1 MiB behind.*attach again"):
            await session

    run(test())


def test_keys_that_nobody_took_do_not_hide_why_a_session_ends(scene: Scene) -> None:
    """A socket that is closed with something unread in it reads as reset."""

    async def test() -> None:
        session = await paste(scene)
        await asyncio.to_thread(scene.hub.stop)
        with pytest.raises(Unavailable, match="stops"):
            await session

    run(test())


def test_a_console_that_cannot_be_read_any_more_is_told(scene: Scene, tmp_path: Path) -> None:
    """A directory in the place of the hub's descriptor stands for a disk with errors."""

    def descriptors() -> set[int]:
        links = Path("/proc/self/fd").iterdir()
        return {int(link.name) for link in links if os.path.realpath(link) == str(scene.raw)}

    async def test() -> None:
        before = descriptors()
        session = await scene.attach(session_streams(Sent(silent=True), Reading()))
        (hubs,) = descriptors() - before
        directory = os.open(tmp_path, os.O_RDONLY)
        os.dup2(directory, hubs)
        os.close(directory)
        scene.guest.print(b"x")
        with pytest.raises(Unavailable, match=r"vm-1.*cannot be read"):
            await session

    run(test())


def test_a_manager_that_stops_is_told(scene: Scene) -> None:
    async def test() -> None:
        session = await scene.attach(session_streams(Sent(silent=True), Reading()))
        await asyncio.to_thread(scene.hub.stop)
        with pytest.raises(Unavailable, match=r"stops.*attach again"):
            await session

    run(test())


def test_a_session_with_keys_on_their_way_leaves_no_descriptor_in_use(scene: Scene) -> None:
    """Whoever gets the number next, as a new connection does, can be waited for."""

    async def test() -> None:
        session = await paste(scene)
        session.cancel()
        await asyncio.gather(session, return_exceptions=True)
        loop = asyncio.get_running_loop()
        pipes = [os.pipe() for _ in range(8)]
        for read, write in pipes:
            written = asyncio.Event()
            loop.add_reader(read, written.set)
            os.write(write, b"x")
            await written.wait()
            loop.remove_reader(read)
            os.close(read)
            os.close(write)

    run(test())


@pytest.mark.parametrize("websocket", [True, False], ids=["websocket", "spdy"])
def test_kubectl_tells_a_slow_client_and_fails(
    scene: Scene, tmp_path: Path, websocket: bool
) -> None:
    async def test() -> None:
        handlers = Handlers(exec=Waiting(), attach=scene.attacher, ports=LoopbackDialer())
        server = StreamingServer("127.0.0.1", 0, handlers)
        await server.start()
        async with (
            ApiServer(server) as api,
            Kubectl(api.url, tmp_path, websocket).started("attach", "vm") as process,
        ):
            assert process.stdout
            attached = asyncio.create_task(process.stdout.read(1))
            while not attached.done():
                scene.guest.print(b".")
                await asyncio.sleep(0.02)
            await asyncio.to_thread(scene.print, FLOOD)
            _, errors = await process.communicate()
            assert process.returncode == 1
            assert b"1 MiB behind" in errors
        await server.stop()

    run(test())


def test_a_vm_that_is_unknown_or_does_not_run_is_refused(scene: Scene) -> None:
    with pytest.raises(NotFound, match="there is no container vm-2"):
        scene.attacher.check("vm-2")
    record = scene.store.vms["vm-1"]
    scene.store.put_vm(evolve(record, phase=VmPhase.EXITED))
    with pytest.raises(FailedPrecondition, match="does not run"):
        scene.attacher.check("vm-1")
