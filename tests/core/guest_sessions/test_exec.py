"""Commands of streaming sessions: streams that cross from the event loop to a thread."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
import uvloop

from tests.core.guest_sessions.world import Received, Sent, running, session_streams
from tests.polling import until_async
from virtlet.core.guest_sessions.executions import ExecLimits
from virtlet.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from virtlet.model.execution import GuestCommand, GuestStreams
from virtlet.streaming.handlers import ExecRequest, ExitStatus


def wanted(*command: str, vm_id: str = "vm", stdin: bool = True, tty: bool = False) -> ExecRequest:
    return ExecRequest(
        container_id=vm_id, command=command, stdin=stdin, stdout=True, stderr=not tty, tty=tty
    )


def cat(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
    assert timeout is None
    while (data := streams.read_input(100_000, 0.05)) != b"":
        if data is not None:
            streams.write_output(data)
            streams.write_error(b"%d " % len(data))
    return 300


def until_gone(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
    while not streams.gone:
        streams.write_output(b"x")
        time.sleep(0.01)
    return 137


def test_bytes_cross_in_order_and_the_exit_code_comes_back(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 70_000 for number in range(20)]
    stdout, stderr = Received(), Received()
    with running(tmp_path, cat) as world:
        streams = session_streams(Sent(*pieces), stdout, stderr)
        status = uvloop.run(world.executions.run(wanted("cat"), streams))
    assert status == ExitStatus(300 & 255)
    assert stdout.data == b"".join(pieces)
    assert sum(map(int, stderr.data.split())) == 20 * 70_000


def test_a_silent_client_keeps_nothing_from_flowing(tmp_path: Path) -> None:
    def prompt(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        assert streams.read_input(10, 0.05) is None
        streams.write_output(b"prompt")
        assert streams.read_input(10, 0.05) is None
        return 0

    stdin, stdout = Sent(silent=True), Received()
    with running(tmp_path, prompt) as world:
        uvloop.run(world.executions.run(wanted("sh"), session_streams(stdin, stdout)))
    assert stdout.data == b"prompt"
    assert stdin.reads == 1


def test_streams_that_nobody_asked_for_are_empty_or_thrown_away(tmp_path: Path) -> None:
    def chatty(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        streams.write_error(b"nobody hears this")
        assert streams.terminal_size() is None
        return len(streams.read_input(10, 1) or b"")

    with running(tmp_path, chatty) as world:
        request = wanted("x", stdin=False)
        assert uvloop.run(world.executions.run(request, session_streams())) == ExitStatus(0)


def test_terminal_sizes_arrive_once_each(tmp_path: Path) -> None:
    def look(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        assert command.tty
        for _ in range(500):
            if (size := streams.terminal_size()) is not None:
                streams.write_output(repr(size).encode())
                return 0 if streams.terminal_size() is None else 1
            time.sleep(0.01)
        return 2

    stdout = Received()
    with running(tmp_path, look) as world:
        streams = session_streams(Sent(), stdout, sizes=[(80, 24), (132, 50)])
        request = wanted("sh", tty=True)
        assert uvloop.run(world.executions.run(request, streams)) == ExitStatus(0)
    assert stdout.data == b"(132, 50)"


def test_a_client_that_vanishes_ends_the_command_and_frees_its_slot(tmp_path: Path) -> None:
    async def session() -> None:
        streams = session_streams(Sent(silent=True), Received())
        task = asyncio.create_task(world.executions.run(wanted("top"), streams))
        await until_async(begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(10):
                await task

    begun, ended = threading.Event(), threading.Event()

    def told(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        begun.set()
        code = until_gone(command, streams, timeout)
        ended.set()
        return code

    with running(tmp_path, told, ExecLimits(total=1, each=1)) as world:
        for _ in range(3):
            begun.clear()
            ended.clear()
            uvloop.run(session())
            assert ended.wait(10)
            time.sleep(0.2)  # the slot is free a moment after the command's end


@pytest.mark.parametrize("stdout", [Received(closed=True), Received(stuck=True)])
def test_a_client_that_takes_no_output_does_not_hold_the_thread(
    tmp_path: Path, stdout: Received
) -> None:
    async def session() -> None:
        task = asyncio.create_task(
            world.executions.run(wanted("yes"), session_streams(None, stdout))
        )
        await asyncio.wait((task,), timeout=0.5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with running(tmp_path, until_gone, ExecLimits(total=1, each=1)) as world:
        uvloop.run(session())
        started = time.monotonic()
        world.executions.close(30)
        assert time.monotonic() - started < 10


def test_errors_reach_the_client(tmp_path: Path) -> None:
    def nobody(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        raise Unavailable("no guest agent answers")

    with running(tmp_path, nobody) as world:
        run = world.executions.run
        with pytest.raises(Unavailable, match="no guest agent answers"):
            uvloop.run(run(wanted("x"), session_streams()))
        with pytest.raises(NotFound):
            uvloop.run(run(wanted("x", vm_id="unknown"), session_streams()))
        with pytest.raises(InvalidArgument):
            uvloop.run(run(wanted(), session_streams()))


def test_sessions_have_a_limit_and_the_loop_stays_free(tmp_path: Path) -> None:
    release = threading.Event()
    begun: list[GuestCommand] = []

    def wait(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        begun.append(command)
        release.wait(10)
        return 0

    async def sessions() -> None:
        tasks = [
            asyncio.create_task(world.executions.run(wanted("x"), session_streams()))
            for _ in range(4)
        ]
        await until_async(lambda: len(begun) == 4)
        with pytest.raises(ResourceExhausted):
            await world.executions.run(wanted("x"), session_streams())
        release.set()
        assert await asyncio.gather(*tasks) == [ExitStatus(0)] * 4

    with running(tmp_path, wait, ExecLimits(total=8, each=4)) as world:
        uvloop.run(sessions())


def test_a_loop_that_has_ended_does_not_hold_the_thread(tmp_path: Path) -> None:
    """As when the manager stops in the middle of a session."""
    ended = threading.Event()

    def goes_on(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        ended.wait(5)
        streams.write_output(b"x")
        return 0 if streams.gone else 1

    async def session() -> None:
        streams = session_streams(None, Received())
        task = asyncio.create_task(world.executions.run(wanted("x"), streams))
        await asyncio.wait((task,), timeout=0.1)

    with running(tmp_path, goes_on) as world:
        uvloop.run(session())
        ended.set()
        world.executions.close(5)
