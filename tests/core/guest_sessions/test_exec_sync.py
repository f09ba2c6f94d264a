"""Commands for ExecSync."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.core.guest_sessions.world import running
from virtlet.core.guest_sessions.executions import (
    COMMAND_LIMIT,
    OUTPUT_LIMIT,
    OUTPUT_OF_VM,
    ExecLimits,
    KeptOutput,
)
from virtlet.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from virtlet.model.execution import GuestCommand, GuestStreams


def greeter(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
    streams.write_output(" ".join(command.argv).encode())
    streams.write_error(f"{command.captured} {timeout} {streams.read_input(9, 1)!r}".encode())
    return 3


def test_a_command_runs_with_its_timeout_and_no_input(tmp_path: Path) -> None:
    with running(tmp_path, greeter) as world:
        result = world.executions.exec_sync("vm", ("echo", "a b"), 2.5)
    assert (result.exit_code, result.output, result.errors) == (3, b"echo a b", b"True 2.5 b''")


def test_output_over_the_limit_is_thrown_away_and_the_command_goes_on(tmp_path: Path) -> None:
    def flood(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        for _ in range(5):
            streams.write_output(b"o" * (5 << 20))
            streams.write_error(b"e" * (5 << 20))
        return 0

    with running(tmp_path, flood) as world:
        result = world.executions.exec_sync("vm", ("flood",), None)
    assert result.output == b"o" * OUTPUT_LIMIT
    assert result.errors == b"e" * OUTPUT_LIMIT


def test_output_of_all_commands_of_a_guest_and_of_all_guests_is_bounded(tmp_path: Path) -> None:
    """Commands that have ended count no more."""
    together = threading.Barrier(17, timeout=30)

    def flood(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        for _ in range(12):
            streams.write_output(b"o" * (1 << 20))
        together.wait()
        return 0

    with running(tmp_path, flood) as world, ThreadPoolExecutor(17) as pool:
        for _ in range(2):
            of_one = [
                pool.submit(world.executions.exec_sync, "vm", ("flood",), None) for _ in range(16)
            ]
            other = pool.submit(world.executions.exec_sync, "other", ("flood",), None)
            assert sum(len(each.result().output) for each in of_one) == OUTPUT_OF_VM
            assert len(other.result().output) == 12 << 20
    kept = KeptOutput(total=10, each=6)
    with kept.of("one") as one, kept.of("one") as more, kept.of("two") as two:
        assert (one(4), more(4), two(9)) == (4, 2, 4)
    with kept.of("two") as two:
        assert two(9) == 6


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ((), "the command is empty"),
        (("", "x"), "the command is empty"),
        (("echo", "x" * COMMAND_LIMIT), "at most 131072 are taken"),
        (("echo", *["x"] * COMMAND_LIMIT), "at most 131072 are taken"),
        (("echo", "a\0b"), "a zero byte"),
    ],
)
def test_what_is_no_command_is_refused(tmp_path: Path, command: tuple[str, ...], why: str) -> None:
    with running(tmp_path, greeter) as world, pytest.raises(InvalidArgument, match=why):
        world.executions.exec_sync("vm", command, None)


def test_a_command_just_below_the_limit_runs(tmp_path: Path) -> None:
    with running(tmp_path, greeter) as world:
        world.executions.exec_sync("vm", ("echo", "x" * (COMMAND_LIMIT - 6)), None)


@pytest.mark.parametrize("vm_id", ["created", "exited"])
def test_a_machine_that_does_not_run_is_refused(tmp_path: Path, vm_id: str) -> None:
    with (
        running(tmp_path, greeter) as world,
        pytest.raises(FailedPrecondition, match=f"is {vm_id}: commands need a running one"),
    ):
        world.executions.exec_sync(vm_id, ("true",), None)


@pytest.mark.parametrize("vm_id", ["unknown", "creating"])
def test_a_machine_that_nobody_knows_is_not_found(tmp_path: Path, vm_id: str) -> None:
    with running(tmp_path, greeter) as world, pytest.raises(NotFound):
        world.executions.exec_sync(vm_id, ("true",), None)


def test_errors_of_the_guest_come_through_and_give_the_slot_back(tmp_path: Path) -> None:
    def late(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        raise DeadlineExceeded("too late")

    with running(tmp_path, late, ExecLimits(total=1, each=1)) as world:
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                world.executions.exec_sync("vm", ("true",), 1)


def test_one_guest_cannot_take_all_the_slots_and_all_guests_together_have_an_end(
    tmp_path: Path,
) -> None:
    release, started = threading.Event(), threading.Semaphore(0)

    def wedged(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        started.release()
        release.wait(10)
        return 0

    with running(tmp_path, wedged, ExecLimits(total=3, each=2)) as world:

        def run(vm_id: str) -> None:
            world.executions.exec_sync(vm_id, ("true",), None)

        threads = [threading.Thread(target=run, args=(vm,)) for vm in ("vm", "vm", "other")]
        for thread in threads[:2]:
            thread.start()
            assert started.acquire(timeout=5)
        with pytest.raises(ResourceExhausted, match="2 commands run in this VM"):
            run("vm")
        threads[2].start()
        assert started.acquire(timeout=5)
        with pytest.raises(ResourceExhausted, match="3 commands run in the VMs of this node"):
            run("other")
        release.set()
        for thread in threads:
            thread.join()
        run("vm")


def test_a_command_whose_client_went_away_ends_and_gives_its_slot_back(tmp_path: Path) -> None:
    begun, left = threading.Event(), threading.Event()

    def endless(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        begun.set()
        while not streams.gone:
            time.sleep(0.01)
        return 137

    with running(tmp_path, endless, ExecLimits(total=1, each=1)) as world:
        run = world.executions.exec_sync

        def waits() -> bool:
            return not left.is_set()

        for _ in range(3):
            begun.clear()
            left.clear()
            thread = threading.Thread(target=run, args=("vm", ("sleep",), None, waits))
            thread.start()
            assert begun.wait(5)
            with pytest.raises(ResourceExhausted):
                run("vm", ("sleep",), None)
            left.set()
            thread.join(5)
            assert not thread.is_alive()


def test_a_manager_that_stops_ends_commands_and_takes_no_result_for_theirs(tmp_path: Path) -> None:
    begun = threading.Event()
    errors: list[Exception] = []

    def endless(command: GuestCommand, streams: GuestStreams, timeout: float | None) -> int:
        begun.set()
        while not streams.gone:
            time.sleep(0.01)
        return 137

    with running(tmp_path, endless) as world:

        def run() -> None:
            try:
                world.executions.exec_sync("vm", ("sleep",), None)
            except Unavailable as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert begun.wait(5)
        started = time.monotonic()
        world.executions.close(30)
        assert time.monotonic() - started < 10
        thread.join()
        assert len(errors) == 1
        with pytest.raises(Unavailable, match="the manager stops"):
            world.executions.exec_sync("vm", ("true",), None)
