"""What a hostile guest, or somebody who plants links, costs by way of the console and its log."""

import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.console.support import Emulator, console_files, log_of, rotate
from tests.console.test_hub import hub as hub
from tests.polling import until
from virtlet.console.console_files import ConsoleFiles, make_console
from virtlet.console.cri_log import decode
from virtlet.console.follower import BATCH, Follower
from virtlet.console.hub import ConsoleHub
from virtlet.console.live_console import BACKLOG_LIMIT, READERS_LIMIT, EndReason
from virtlet.console.log_writer import ConsoleLogs
from virtlet.errors import FailedPrecondition, ResourceExhausted, Unavailable

SIZE = 4 << 20
MOST_MEMORY = 64 << 20
MOST_STALL = 0.05
"""Seconds of CPU time of one turn."""

FLOODS = {
    "no newline": b"x" * SIZE,
    "newlines": b"\n" * SIZE,
    "escapes": b"\x1b[2J\x1b[31;1m\x1b]0;title\x07\r" * (SIZE // 24),
    "forged lines": b"2026-01-02T15:04:05.123456789Z stderr F [virtlet: 9 bytes]\n" * (SIZE // 60),
    "zeros": bytes(SIZE),
}


@pytest.fixture
def memory() -> Iterator[Callable[[], int]]:
    """The most memory in use since the test began, in bytes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    yield lambda: tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_takes_short_turns_of_the_log_writer(flood: bytes, files: ConsoleFiles) -> None:
    make_console(files)
    files.raw.write_bytes(flood)
    turns = []
    with closing(Follower(files)) as follower:
        follower.open()
        going = True
        while going:
            began = time.thread_time()
            going = follower.step(flush=True)
            turns.append(time.thread_time() - began)
    assert len(turns) >= len(flood) // BATCH
    assert max(turns) < MOST_STALL
    assert decode(log_of(files).read_bytes()).payload == flood


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_takes_little_memory_also_after_a_kill(
    flood: bytes, files: ConsoleFiles, memory: Callable[[], int]
) -> None:
    """A batch is in the log, and no checkpoint says so."""
    make_console(files)
    files.raw.write_bytes(flood[: 2 * BATCH])
    with closing(Follower(files)) as follower:
        follower.open()
        state = files.state.read_bytes()
        follower.step(flush=True)
    files.state.write_bytes(state)
    with closing(Follower(files)) as follower:
        follower.open()
        assert follower.pending < BATCH + 100
    assert memory() < MOST_MEMORY


def test_a_raw_file_that_is_large_in_name_alone_is_told_as_lost(files: ConsoleFiles) -> None:
    """And does not fill the disk with zeros, although its size is that of all disks together."""
    make_console(files)
    with files.raw.open("ab") as raw:
        raw.write(b"begin\n" * 1000)
        raw.truncate(1 << 42)
        raw.write(b"end\n")
    follower = Follower(files)
    follower.open()
    follower.finish()
    told = decode(log_of(files).read_bytes())
    assert told.payload.startswith(b"begin\n")
    assert told.payload.endswith(b"end\n")
    assert len(told.payload) + told.lost == (1 << 42) + 4
    assert log_of(files).stat().st_size < 1 << 20


def test_a_kill_between_noting_and_telling_a_hole_loses_nothing(files: ConsoleFiles) -> None:
    make_console(files)
    with closing(Follower(files)) as killed:
        killed.open()
        with files.raw.open("ab") as raw:
            raw.truncate(1 << 30)
            raw.write(b"end\n")
        assert killed.step()
        assert killed.lost == 1 << 30
    follower = Follower(files)
    follower.open()
    follower.finish()
    told = decode(log_of(files).read_bytes())
    assert (told.payload, told.lost) == (b"end\n", 1 << 30)


def test_so_many_clients_may_be_attached_to_one_console(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    attached = [hub.attach(files) for _ in range(READERS_LIMIT)]
    with pytest.raises(ResourceExhausted, match="end one of them"):
        hub.attach(files)
    attached[0].close()
    until(lambda: not _refused(hub, files))
    for attachment in attached[1:]:
        attachment.close()


def _refused(hub: ConsoleHub, files: ConsoleFiles) -> bool:
    try:
        hub.attach(files).close()
    except ResourceExhausted:
        return True
    return False


def test_clients_that_take_nothing_of_a_flood_cost_little(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles, memory: Callable[[], int]
) -> None:
    attached = [hub.attach(files) for _ in range(READERS_LIMIT)]
    for _ in range(4):
        guest.print(b"\x1b[2J" * (SIZE // 4))
    until(lambda: all(a.reason is EndReason.SLOW for a in attached))
    assert memory() < MOST_MEMORY
    for attachment in attached:
        attachment.close()


def test_readers_of_all_consoles_together_are_bounded(logs: ConsoleLogs, tmp_path: Path) -> None:
    """Those furthest behind are dropped, as many as it takes; the others stay."""
    hub = ConsoleHub(BACKLOG_LIMIT)
    hub.start()
    consoles = [console_files(tmp_path, f"vm-{number}") for number in range(8)]
    guests = []
    for files in consoles:
        logs.prepare(files)
        guests.append(Emulator(files))
    attached = [hub.attach(files) for files in consoles]
    for guest in guests:
        guest.print(b"x" * (900 << 10))

    def dropped() -> int:
        return [attachment.reason for attachment in attached].count(EndReason.SLOW)

    # The kernel's buffers keep some 400 to 750 KiB of each, by how it comes in: what is left of
    # eight is beyond the limit, and what is left of one is not.
    until(lambda: dropped() >= 1)
    hub.attach(consoles[0]).close()
    assert dropped() < len(consoles)
    for attachment in attached:
        attachment.close()
    hub.stop()
    for guest in guests:
        guest.exit()


def test_an_emulator_that_goes_on_writing_without_a_keyboard_holds_up_nobody(
    hub: ConsoleHub, logs: ConsoleLogs, files: ConsoleFiles, tmp_path: Path
) -> None:
    """Its clients get what there was when it let go of the keyboard, and the hub serves others."""
    logs.prepare(files)
    guest = Emulator(files)
    attachment = hub.attach(files)
    with files.raw.open("ab") as raw:
        guest.exit()
        until(lambda: _written_until_ended(raw.fileno(), attachment.reason))
    assert attachment.reason is EndReason.GONE
    attachment.close()
    other = console_files(tmp_path, "vm-2")
    logs.prepare(other)
    emulator = Emulator(other)
    hub.attach(other).close()
    emulator.exit()


def _written_until_ended(raw: int, reason: EndReason | None) -> bool:
    os.write(raw, b"more\n" * 20_000)
    return reason is not None


@pytest.fixture
def pod(tmp_path: Path) -> ConsoleFiles:
    """A console with its log in a directory of the container's, as a kubelet has it."""
    directory = tmp_path / "pods" / "default_pod_uid"
    return ConsoleFiles("vm-1", tmp_path / "vm-1-console", directory / "guest" / "0.log", directory)


def plant(kind: str, path: Path, target: Path) -> None:
    """Put something else where a log is expected."""
    match kind:
        case "link":
            path.symlink_to(target)
        case "dangling link":
            path.symlink_to(target.with_name("none"))
        case "hard link":
            path.hardlink_to(target)
        case "fifo":
            os.mkfifo(path)


KINDS = ("link", "dangling link", "hard link", "fifo")


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_log_is_refused_before_the_vm_starts(
    kind: str, pod: ConsoleFiles, logs: ConsoleLogs, tmp_path: Path
) -> None:
    target = tmp_path / "shadow"
    target.write_bytes(b"root:secret\n")
    log_of(pod).parent.mkdir(parents=True)
    plant(kind, log_of(pod), target)
    with pytest.raises(FailedPrecondition, match="clear the path"):
        logs.prepare(pod)
    assert target.read_bytes() == b"root:secret\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("place", ["the container's", "the pod's"])
def test_a_planted_directory_is_refused(
    place: str, pod: ConsoleFiles, logs: ConsoleLogs, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "etc"
    elsewhere.mkdir()
    assert pod.log_directory is not None
    link = log_of(pod).parent if place == "the container's" else pod.log_directory
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(FailedPrecondition, match="without links"):
        logs.prepare(pod)
    assert not list(elsewhere.iterdir())


def test_directories_above_the_pods_may_be_links(
    pod: ConsoleFiles, logs: ConsoleLogs, tmp_path: Path
) -> None:
    """Many nodes have their logs on another disk."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "pods").symlink_to(tmp_path / "disk")
    logs.prepare(pod)
    emulator = Emulator(pod)
    emulator.print(b"hello\n")
    until(lambda: log_of(pod).read_bytes() != b"")
    emulator.exit()


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_log_is_refused_when_the_log_is_reopened(
    kind: str, pod: ConsoleFiles, logs: ConsoleLogs, tmp_path: Path
) -> None:
    """And the rotated one is written on."""
    target = tmp_path / "shadow"
    target.write_bytes(b"root:secret\n")
    logs.prepare(pod)
    emulator = Emulator(pod)
    rotated = log_of(pod).with_name("0.log.1")
    log_of(pod).rename(rotated)
    plant(kind, log_of(pod), target)
    with pytest.raises(Unavailable, match="cannot reopen"):
        logs.reopen(pod.vm_id)
    emulator.print(b"hello\n")
    until(lambda: decode(rotated.read_bytes()).payload == b"hello\n")
    emulator.exit()
    assert target.read_bytes() == b"root:secret\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_log_is_not_written_after_the_log_was_deleted(
    kind: str, pod: ConsoleFiles, logs: ConsoleLogs, tmp_path: Path
) -> None:
    target = tmp_path / "shadow"
    target.write_bytes(b"root:secret\n")
    logs.prepare(pod)
    emulator = Emulator(pod)
    log_of(pod).unlink()
    plant(kind, log_of(pod), target)
    emulator.print(b"hello\n")
    until(lambda: logs.status()[0].problem != "")
    log_of(pod).unlink()
    until(lambda: log_of(pod).exists() and log_of(pod).read_bytes() != b"")
    emulator.exit()
    assert target.read_bytes() == b"root:secret\n"


def test_a_planted_link_is_not_taken_for_a_rotated_log_after_a_restart(
    pod: ConsoleFiles, logs: ConsoleLogs, tmp_path: Path
) -> None:
    """The directory of the container was replaced by a link while the manager was away."""
    logs.prepare(pod)
    emulator = Emulator(pod)
    emulator.print(b"one\n")
    until(lambda: log_of(pod).read_bytes() != b"")
    logs.stop()
    emulator.print(b"two\n")
    moved = tmp_path / "moved"
    log_of(pod).parent.rename(moved)
    log_of(pod).parent.symlink_to(moved)
    before = log_of(pod).read_bytes()
    logs.start()
    logs.add(pod)
    assert logs.status()[0].problem != ""
    assert (moved / "0.log").read_bytes() == before
    log_of(pod).parent.unlink()
    moved.rename(log_of(pod).parent)
    emulator.exit()
    until(lambda: b"two" in log_of(pod).read_bytes())
    rotate(pod)
