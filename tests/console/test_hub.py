"""People attached to consoles: many readers, one keyboard, and nobody in the guest's way."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.support import Emulator, printed
from tests.polling import until
from virtlet.console.console_files import ConsoleFiles
from virtlet.console.hub import ConsoleHub
from virtlet.console.live_console import BACKLOG_LIMIT, SKIPPED, Attachment, EndReason
from virtlet.console.log_writer import ConsoleLogs
from virtlet.errors import FailedPrecondition, Unavailable


@pytest.fixture
def hub() -> Iterator[ConsoleHub]:
    hub = ConsoleHub()
    hub.start()
    yield hub
    hub.stop()


def read(attachment: Attachment, count: int) -> bytes:
    """Exactly so many bytes of output."""
    attachment.socket.settimeout(10)
    output = b""
    while len(output) < count:
        piece = attachment.socket.recv(count - len(output))
        assert piece, f"ended ({attachment.reason}) after {output!r}"
        output += piece
    return output


def rest(attachment: Attachment) -> bytes:
    """All output until the attachment ends."""
    attachment.socket.settimeout(10)
    output = b""
    while piece := attachment.socket.recv(65536):
        output += piece
    return output


def test_every_reader_sees_what_is_printed(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    readers = [hub.attach(files) for _ in range(3)]
    guest.print(b"hello \xff\n")
    assert [read(reader, 8) for reader in readers] == [b"hello \xff\n"] * 3
    for reader in readers:
        reader.close()


def test_history_is_not_replayed(hub: ConsoleHub, guest: Emulator, files: ConsoleFiles) -> None:
    guest.print(b"before\n")
    with hub.attach(files).socket as first:
        guest.print(b"first\n")
        assert first.recv(6) == b"first\n"
        second = hub.attach(files)
        guest.print(b"second\n")
        assert read(second, 7) == b"second\n"
        second.close()


def test_an_echo_comes_back_quickly(hub: ConsoleHub, guest: Emulator, files: ConsoleFiles) -> None:
    reader = hub.attach(files)
    started = time.monotonic()
    for number in range(200):
        reader.socket.sendall(b"%03d" % number)
        guest.print(guest.typed(3))
        assert read(reader, 3) == b"%03d" % number
    assert time.monotonic() - started < 200 * 0.05
    reader.close()


def test_all_readers_share_one_keyboard(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    first, second = hub.attach(files), hub.attach(files)
    first.socket.sendall(b"from the first;")
    assert guest.typed(15) == b"from the first;"
    second.socket.sendall(b"from the second;")
    assert guest.typed(16) == b"from the second;"
    first.close()
    second.close()


def test_what_one_reader_types_at_once_stays_together(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    readers = [hub.attach(files) for _ in range(4)]
    for number, reader in enumerate(readers):
        for _ in range(50):
            reader.socket.sendall(b"%d" % number * 20)
    keys = guest.typed(4 * 50 * 20)
    assert sorted(keys) == sorted(b"0123" * 1000)
    assert all(len(set(keys[at : at + 20])) == 1 for at in range(0, len(keys), 20))
    for reader in readers:
        reader.close()


def test_a_long_paste_waits_for_the_guest(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    reader = hub.attach(files)
    reader.socket.setblocking(False)
    paste, sent = bytes(range(32, 127)) * 10_000, 0
    with pytest.raises(BlockingIOError):
        while True:
            sent += reader.socket.send(paste[sent : sent + 4096])
    assert sent < 600_000, "more was taken from the user than is kept for the guest"
    assert guest.typed(sent) == paste[:sent]
    reader.close()


def test_keys_before_the_end_of_input_reach_the_guest(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    reader = hub.attach(files)
    reader.socket.sendall(b"reboot\n")
    reader.socket.shutdown(socket.SHUT_WR)
    assert guest.typed(7) == b"reboot\n"
    guest.print(b"going down\n")
    assert read(reader, 11) == b"going down\n"
    reader.close()


def test_keys_before_a_disconnect_reach_the_guest(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    reader = hub.attach(files)
    paste = b"k" * 150_000
    reader.socket.sendall(paste[:100_000])
    reader.close()
    assert guest.typed(100_000) == paste[:100_000]


def test_the_detach_key_ends_only_the_readers_own_attachment(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    first, second = hub.attach(files), hub.attach(files)
    first.socket.sendall(b"\x1d")
    assert rest(first) == b""
    assert first.reason is EndReason.DETACHED
    guest.print(b"still here\n")
    assert read(second, 11) == b"still here\n"
    second.socket.sendall(b"x")
    assert guest.typed(1) == b"x"
    first.close()
    second.close()


def test_what_came_before_the_detach_key_is_typed_and_nothing_after_it(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    first, second = hub.attach(files), hub.attach(files)
    first.socket.sendall(b"poweroff\n\x1dnot this")
    assert rest(first) == b""
    assert first.reason is EndReason.DETACHED
    assert guest.typed(9) == b"poweroff\n"
    second.socket.sendall(b"x")
    assert guest.typed(1) == b"x"
    first.close()
    second.close()


def test_without_a_detach_key_it_is_typed(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    reader = hub.attach(files, detach_key=b"")
    reader.socket.sendall(b"\x1d")
    assert guest.typed(1) == b"\x1d"
    reader.close()


def test_a_slow_reader_is_dropped_and_the_others_go_on(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    slow, quick = hub.attach(files), hub.attach(files)
    size, piece = 3 * BACKLOG_LIMIT, b"x" * 32768
    for _ in range(size // len(piece)):
        guest.print(piece)
        assert read(quick, len(piece)) == piece
    until(lambda: slow.reason is EndReason.SLOW)
    assert len(rest(slow)) < size
    slow.close()
    quick.close()


def test_readers_leave_the_log_alone(
    hub: ConsoleHub, logs: ConsoleLogs, guest: Emulator, files: ConsoleFiles
) -> None:
    readers = [hub.attach(files) for _ in range(2)]
    output = b"".join(b"%07d\n" % number for number in range(200_000))
    for at in range(0, len(output), 1000):
        guest.print(output[at : at + 1000])
    assert logs.finish(files).complete
    assert printed(files) == output
    for reader in readers:
        reader.close()


def test_output_given_back_too_early_is_marked(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    """A hole where the hub comes to read is not shown as zeros."""
    reader = hub.attach(files)
    with files.raw.open("r+b") as raw:
        raw.truncate(1_000_000)
        raw.seek(1_000_000)
        raw.write(b"shown\n")
    assert read(reader, len(SKIPPED) + 6).startswith(SKIPPED)
    reader.close()


def test_the_end_of_the_emulator_ends_all_after_its_last_words(
    hub: ConsoleHub, logs: ConsoleLogs, files: ConsoleFiles
) -> None:
    logs.prepare(files)
    guest = Emulator(files)
    readers = [hub.attach(files) for _ in range(2)]
    guest.print(b"last words" * 30_000)
    guest.exit()
    assert [rest(reader) for reader in readers] == [b"last words" * 30_000] * 2
    assert [reader.reason for reader in readers] == [EndReason.GONE] * 2
    with pytest.raises(FailedPrecondition, match="not running"):
        hub.attach(files)
    for reader in readers:
        reader.close()


def test_the_next_emulator_can_be_attached_to(
    hub: ConsoleHub, logs: ConsoleLogs, files: ConsoleFiles
) -> None:
    for _ in range(3):
        logs.prepare(files)
        guest = Emulator(files)
        reader = hub.attach(files)
        guest.print(b"up\n")
        assert read(reader, 3) == b"up\n"
        guest.exit()
        assert rest(reader) == b""
        reader.close()


def test_a_vm_without_console_is_refused(hub: ConsoleHub, files: ConsoleFiles) -> None:
    with pytest.raises(FailedPrecondition, match="vm-1"):
        hub.attach(files)


def test_a_keyboard_that_is_no_fifo_is_refused(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    files.keyboard.unlink()
    files.keyboard.write_bytes(b"")
    with pytest.raises(Unavailable, match="not a FIFO"):
        hub.attach(files)
    assert files.keyboard.read_bytes() == b""


def test_stopping_ends_all_and_a_new_hub_attaches_again(
    guest: Emulator, files: ConsoleFiles
) -> None:
    for _ in range(3):
        hub = ConsoleHub()
        hub.start()
        reader = hub.attach(files)
        guest.print(b"x")
        assert read(reader, 1) == b"x"
        hub.stop()
        assert rest(reader) == b""
        assert reader.reason is EndReason.STOPPED
        reader.close()
        with pytest.raises(Unavailable):
            hub.attach(files)


def test_waiting_takes_no_time(hub: ConsoleHub, guest: Emulator, files: ConsoleFiles) -> None:
    """Neither idle readers, nor one whose keys nobody takes, nor one that left such keys."""
    readers = [hub.attach(files) for _ in range(5)]
    for reader in readers[:2]:
        reader.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                reader.socket.send(b"k" * 4096)
    readers[0].close()
    readers[4].socket.shutdown(socket.SHUT_WR)
    guest.print(b"x")
    time.sleep(0.1)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.1
    for reader in readers[1:]:
        reader.close()


def test_clients_that_vanish_leave_nothing_open(
    hub: ConsoleHub, guest: Emulator, files: ConsoleFiles
) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for _ in range(50):
        hub.attach(files).close()
    until(lambda: descriptors() <= before)
